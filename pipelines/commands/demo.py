"""crossaudit demo"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Overrides, Verbose


def register(app: typer.Typer, panel: str) -> None:
    app.command(rich_help_panel=panel, epilog="Example: crossaudit demo --out /tmp/demo && crossaudit check /tmp/demo")(
        demo
    )


def demo(
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the run goes.")] = "crossaudit-demo",
    set_: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Audit a small model that really memorizes, which comes with the package: minutes, offline.

    Ends with its verdicts against the known truth. What it shows is how the tool works, on a toy.
    """
    from pipelines.demo.demo import run_demo

    run_demo(out, set_ or [])
