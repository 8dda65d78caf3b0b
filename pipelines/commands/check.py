"""The command `crossaudit check`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from pipelines.commands.options import Json, RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit check run")(check)


def check(run: RunDir, json_: Json = False, verbose: Verbose = False) -> None:
    """Verify that a run is complete: every row, caption and selected caption is accounted for exactly once.

    If it is, the audit sample and the claims are computed again from the tables and
    compared with the manifest.

    Exits with code 1 if a check fails. The JSON document has the keys run, ok and
    checks (name, ok, detail, warning).
    """
    from rich.text import Text

    from pipelines.console.progress import waiting
    from pipelines.console.terminal import Console, visible
    from pipelines.runs.recomputed_results import recompute
    from reports.check import check as prove

    with waiting("checking"):
        results = prove(run)
        if all(result.ok for result in results):
            results += recompute(run)
    ok = all(result.ok for result in results)
    if json_:
        typer.echo(json.dumps({"run": run, "ok": ok, "checks": [asdict(result) for result in results]}, indent=2))
        results = []
    console = Console(soft_wrap=True)
    for result in results:
        good = Text("warn  ", "yellow") if result.warning else Text("ok    ", "green")
        mark = good if result.ok else Text("WRONG ", "bold red")
        console.print(mark + Text(visible(f"{result.name}: {result.detail}")))
    if not ok:
        raise typer.Exit(1)
