"""The command `crossaudit detectors`."""

from __future__ import annotations

import typer

from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit detectors")(detectors)


def detectors(verbose: Verbose = False) -> None:
    """List the detectors: the section each belongs to, its cost in UNet forward passes per caption, and its source."""
    from rich.table import Table

    from audit.defaults import DEFAULT_DETECTOR
    from audit.detectors import COMBINED, RUN, SCREEN
    from pipelines.console.terminal import Console

    table = Table("detector", "section", "UNet forwards", "source", box=None, pad_edge=False, header_style="bold")
    for name, screening in SCREEN.items():
        source = f"{screening.source}; the default" if name == DEFAULT_DETECTOR else screening.source
        table.add_row(name, "screen", screening.cost, source)
    for name, parts in COMBINED.items():
        table.add_row(name, "screen", f"sum of {' and '.join(parts)}", "crossaudit")
    for name, running in RUN.items():
        note = "" if name in running.scores else " (mask only)"
        table.add_row(name, "generate", running.cost + note, running.source)
    Console().print(table)
