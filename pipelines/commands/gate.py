"""The command `crossaudit gate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Json, RunDir, Verbose, Waivers

if TYPE_CHECKING:
    from reports.gate import Gate, Rule

FAILED = 3


class Undecided(StrEnum):
    """Verdicts of captions about which nothing is known."""

    unknown = "unknown"
    error = "error"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit gate run --max-high 0 --max-per-million 50 --waivers waivers.yaml"
    app.command(rich_help_panel=panel, epilog=example)(gate)


def gate(
    run: RunDir,
    max_high: Annotated[
        int, typer.Option(min=0, metavar="N", help="The most captions at high risk that pass, without waived ones.")
    ] = 0,
    max_per_million: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="N",
            help="The highest upper end of the claim about copies that passes, in captions per million "
            "(default: it is not compared).",
        ),
    ] = None,
    waivers: Waivers = None,
    allow: Annotated[
        list[Undecided] | None, typer.Option(help="Let captions with this verdict pass. Repeatable.")
    ] = None,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a finished run with limits, for CI: exit with code 3 if it does not pass.

    A caption with the verdict unknown or error fails the run unless --allow says
    otherwise. Waived captions are listed and not counted. Waivers do not change
    the claim about copies.

    The JSON document has the keys run, passed, rules (name, figure, limit, passed
    and note), waived (caption_id, caption, verdict, risk, covers, reason, owner
    and expires) and unused_waivers (what they cover).

    Exit codes: 0 the run passes, 1 the run cannot be read or is not finished, 2
    wrong usage or waivers, 3 the run does not pass.
    """
    from pipelines.configuration.waivers import read_waivers
    from pipelines.console.progress import waiting
    from reports.gate import gate as compare

    given = read_waivers(waivers) if waivers else []
    with waiting("reading the run"):
        found = compare(run, max_high, max_per_million, given, [str(word) for word in allow or ()])
    if json_:
        content = {"run": run, "passed": found.passed, "rules": [asdict(rule) for rule in found.rules]}
        content |= {"waived": found.waived, "unused_waivers": [waiver.covers for waiver in found.unused]}
        typer.echo(json.dumps(content, indent=2))
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(FAILED)


def _print(found: Gate) -> None:
    from rich.text import Text

    from pipelines.console.terminal import Console, visible

    console = Console(soft_wrap=True)
    for rule in found.rules:
        mark = Text("pass  ", "green") if rule.passed else Text("FAIL  ", "bold red")
        console.print(mark + Text(_line(rule)))
    for row in found.waived:
        text = "{verdict}, risk {risk}: {caption} ({reason}; {owner}; until {expires})".format(**row)
        console.print(Text("waived  ", "yellow") + Text(visible(text, keep="")))
    for waiver in found.unused:
        console.print(Text(f"note  the waiver for {visible(waiver.covers, keep='')} covers no confirmed caption"))


def _line(rule: Rule) -> str:
    """Return a rule in one line: its figure, and what it is compared with."""
    figure = "none" if rule.figure is None else f"{rule.figure:,.10g}"
    limit = "allowed" if rule.limit is None else f"at most {rule.limit:,.10g}"
    return f"{rule.name}: {figure} ({limit}){f'; {rule.note}' if rule.note else ''}"
