"""The command `crossaudit detectors`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit detectors --model my-model")(detectors)


def detectors(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A diffusers folder, hub id or .safetensors file: marks the detectors that are uncalibrated evidence "
            "for its family, because they were never measured on planted models of it.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """List the detectors: the section each belongs to, its cost in UNet forward passes per caption, and its source."""
    from rich.table import Table

    from audit.defaults import DEFAULT_DETECTOR
    from audit.detectors import COMBINED, RUN, SCREEN
    from pipelines.console.terminal import Console

    table = Table("detector", "section", "UNet forwards", "source", box=None, pad_edge=False, header_style="bold")
    marked = [] if model is None else _uncalibrated(model)

    def add(name: str, section: str, cost: str, source: str) -> None:
        table.add_row(name, section, cost, f"{source}; uncalibrated evidence" if name in marked else source)

    for name, screening in SCREEN.items():
        source = f"{screening.source}; the default" if name == DEFAULT_DETECTOR else screening.source
        add(name, "screen", screening.cost, source)
    for name, parts in COMBINED.items():
        add(name, "screen", f"sum of {' and '.join(parts)}", "crossaudit")
    for name, running in RUN.items():
        note = "" if name in running.scores else " (mask only)"
        add(name, "generate", running.cost + note, running.source)
    Console().print(table)


def _uncalibrated(model: str) -> list[str]:
    """Return the detectors that are uncalibrated evidence for the family of a model."""
    from audit.detectors import NAMES, uncalibrated
    from pipelines.configuration.inputs import ModelFiles
    from pipelines.console.progress import waiting
    from pipelines.engine.models import outline

    with waiting("reading the model's configuration"):
        return uncalibrated(NAMES, type(outline(ModelFiles(path=model))))
