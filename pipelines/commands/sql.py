"""The command `crossaudit sql`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit sql run")(sql)


def sql(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs: folders or URIs.", show_default=False)],
    verbose: Verbose = False,
) -> None:
    """Open a SQL shell over the tables of runs (DuckDB, read-only). Each table is a view.

    With several runs, each view has the rows of all of them, and a first column
    `run`. Statements end with a semicolon. `.help` lists the commands.

    Statements are also read from a pipe: echo "from funnel" | crossaudit sql run.
    Then the exit code is 1 if one of them fails.
    """
    from pipelines.console.progress import waiting
    from pipelines.console.sql_shell import SqlShell
    from reports.stored_run import locate
    from reports.views import connect

    with ExitStack() as opened:
        with waiting("opening the runs"):
            connection = opened.enter_context(connect(*runs))
        shell = SqlShell(connection, [locate(run) for run in runs])
        if sys.stdin.isatty():
            shell.interact()
        elif not shell.read(sys.stdin):
            raise typer.Exit(1)
