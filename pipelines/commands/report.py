"""The command `crossaudit report`."""

from __future__ import annotations

import typer

from pipelines.commands.options import RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit report run")(report)


def report(run: RunDir, verbose: Verbose = False) -> None:
    """Rewrite the report of a finished run, RUN/report.html."""
    from pipelines.console.progress import waiting
    from reports.html import write

    with waiting("writing the report"):
        path = write(run)
    typer.echo(path)
