"""The command `crossaudit errors`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from textwrap import indent
from typing import Any

import typer

from pipelines.commands.options import Json, RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit errors run")(errors)


def errors(run: RunDir, json_: Json = False, verbose: Verbose = False) -> None:
    """Show what failed in a run, grouped by cause, with an example and its traceback.

    Failures have the same cause if they differ only in numbers, quoted text and
    paths, and were raised in the same line of code. The logs in RUN/logs have the
    traceback of every attempt.

    The JSON document has the keys run, errors (their number) and causes (stage,
    kind, cause, errors, rows, and of one example: caption_id, file, row, message
    and traceback).
    """
    from pipelines.console.progress import waiting
    from pipelines.console.terminal import say
    from reports.causes import causes

    with waiting("reading the errors"):
        found = causes(run).to_pylist()
    total = sum(cause["errors"] for cause in found)
    if json_:
        typer.echo(json.dumps({"run": run, "errors": total, "causes": found}, indent=2))
        return
    for cause in found:
        say("\n".join(_lines(cause)) + "\n")
    plural = "" if len(found) == 1 else "s"
    say(f"{total:,} errors with {len(found):,} cause{plural}" if found else "no errors")


def _lines(cause: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about one cause."""
    rows = f" ({cause['rows']:,} rows)" if cause["rows"] is not None else ""
    yield f"{cause['errors']:,} x {cause['stage']}, {cause['kind']}: {cause['cause']}{rows}"
    place = [f"{name} {cause[name]}" for name in ("caption_id", "file", "row") if cause[name] is not None]
    yield f"  Example: {', '.join([*place, cause['message'] or ''])}"
    if cause["traceback"] is not None:
        yield indent(cause["traceback"], "    ")
