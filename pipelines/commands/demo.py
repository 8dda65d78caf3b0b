"""The command `crossaudit demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import AcceptUnlike, Level, LogLevel, Overrides, Verbose, overrides, state


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit demo --out /tmp/demo && crossaudit check /tmp/demo")(
        demo
    )


def demo(
    out: Annotated[str, typer.Option(metavar="DIR", help="Where to write the run.")] = "crossaudit-demo",
    set_: Overrides = None,
    accept_unlike_controls: AcceptUnlike = False,
    log_level: LogLevel = Level.warning,
    verbose: Verbose = False,
) -> None:
    """Audit a small bundled model that has memorized some of its training images. Takes minutes and works offline.

    Ends with a table that compares the verdicts with the ground truth. The model
    is a toy: the demo shows how the tool works, not how well it works on your
    model.
    """
    from pipelines.console.progress import Reporter
    from pipelines.demo.demo import run_demo

    run_demo(out, overrides(set_, accept_unlike_controls), Reporter(verbose=state.verbose), log_level.value)
