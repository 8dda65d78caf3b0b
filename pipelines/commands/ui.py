"""The command `crossaudit ui`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit ui run")(ui)


def ui(
    run: RunDir,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port of the pages; 0 takes a free one.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Look at a run in the browser, while it works and afterwards.

    While the run works: its progress, its errors by cause, and the captions
    confirmed so far. Afterwards: the report, a search over all captions, the
    training images that match an image of yours, and SQL.

    Only this machine can open the pages, at the address that is printed. They
    change nothing in the run. Press Ctrl-C to stop.
    """
    from pipelines.ui.server import UiServer

    server = UiServer(run, port)
    typer.echo(f"Open {server.address}")
    typer.echo("Press Ctrl-C to stop.")
    server.serve()
    typer.echo()
