"""crossaudit mitigate"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


class KeepPositions(StrEnum):
    """Which text positions every cross-attention may see."""

    eos = "eos"
    words = "words"
    all = "all"


def register(app: typer.Typer, panel: str) -> None:
    app.command(
        rich_help_panel=panel, epilog="Example: crossaudit mitigate run --bos-scale 1.25 --bos-scale 2 --keep eos"
    )(mitigate)


def mitigate(
    run: RunDir,
    bos_scale: Annotated[
        list[float] | None,
        typer.Option(metavar="FACTOR", help="Factor of the BOS logit (default: 1, 1.25, 2, 4). May be repeated."),
    ] = None,
    keep: Annotated[
        list[KeepPositions] | None,
        typer.Option(help="Text that stays visible; repeatable (default: each of them)."),
    ] = None,
    captions: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many confirmed captions.")] = 100,
    ordinary: Annotated[int, typer.Option(min=0, metavar="N", help="At most so many captions that are clear.")] = 50,
    seeds: Annotated[
        list[int] | None, typer.Option(metavar="SEED", help="Default: those of `generate`. May be repeated.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="DIR", help="An open_clip folder, for the CLIP scores of a run without one.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Measure mitigation: a finished run's confirmed captions again, same seeds, without and with it.

    And ordinary captions, for what it costs. Writes the tables mitigation and mitigation_summary and the report again.
    The same command again goes on where it was stopped; other settings of the same captions add to those before.
    """
    from pipelines.runs.mitigate import BOS_SCALES, Request, mitigate_run

    scales, keeps = tuple(bos_scale or BOS_SCALES), tuple(str(word) for word in keep or KeepPositions)
    request = Request(scales, keeps, captions, ordinary, seeds, clip)
    _print(mitigate_run(run, request))
    typer.echo(f"{run.rstrip('/')}/report.html")


def _print(summary: pa.Table) -> None:
    """One line a setting: copies left, and what ordinary captions lose."""
    from rich.table import Table

    from pipelines.console.terminal import Console

    table = Table("keep", "bos_scale", "still copied", "near misses", "similarity", "CLIP, ordinary", "s/image")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = summary.to_pylist()
    ordinary = {(row["keep"], row["bos_scale"]): row for row in rows if row["caption_set"] == "ordinary"}
    for row in rows:
        if row["caption_set"] == "confirmed":
            other = ordinary.get((row["keep"], row["bos_scale"]), {})
            figures = (row["median_similarity"], other.get("clip_score"))
            shown = ["" if figure is None else f"{figure:.3f}" for figure in figures]
            above = f"{row['captions_above']:,} of {row['captions']:,}"
            near = f"{row['captions_near']:,}"
            table.add_row(row["keep"], f"{row['bos_scale']:g}", above, near, *shown, f"{row['seconds_per_image']:.2f}")
    Console().print(table)
