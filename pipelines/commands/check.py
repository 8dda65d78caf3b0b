"""crossaudit check"""

from __future__ import annotations

import typer

from pipelines.commands.options import RunDir, Verbose


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: crossaudit check run")(check)


def check(run: RunDir, verbose: Verbose = False) -> None:
    """Prove that a run's accounting closes: every row, caption and selected caption is somewhere, exactly once.

    Exit code 1 if anything is amiss.
    """
    from rich.console import Console
    from rich.text import Text

    from reports.check import check as prove

    console = Console(soft_wrap=True)
    results = prove(run)
    for result in results:
        good = Text("warn  ", "yellow") if result.warning else Text("ok    ", "green")
        mark = good if result.ok else Text("WRONG ", "bold red")
        console.print(mark + Text(f"{result.name}: {result.detail}"))
    if not all(result.ok for result in results):
        raise typer.Exit(1)
