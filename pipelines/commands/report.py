"""The command `crossaudit report`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose, Waivers


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit report run")(report)


def report(
    run: RunDir,
    waivers: Waivers = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="The largest number of cases with images.")] = 200,
    verbose: Verbose = False,
) -> None:
    """Rewrite the report of a finished run, RUN/report.html.

    With --waivers, the report marks the waived cases. A report that is written
    again without the option has no such marks.
    """
    from pipelines.configuration.waivers import read_waivers
    from pipelines.console.progress import waiting
    from reports.html import write

    given = read_waivers(waivers) if waivers else []
    with waiting("writing the report"):
        path = write(run, given, top)
    typer.echo(path)
