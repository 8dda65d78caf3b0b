"""The command `crossaudit views`."""

from __future__ import annotations

import typer

from pipelines.commands.options import RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit views run > audit.sql")(views)


def views(run: RunDir, verbose: Verbose = False) -> None:
    """Print a SQL script that creates the views of a run in DuckDB.

    The script works without crossaudit: in the shell of DuckDB, in Python and in
    notebooks. It reads the Parquet files of the run where they are.
    """
    from pipelines.console.terminal import emit
    from reports.view_script import script

    emit(script(run).encode())
