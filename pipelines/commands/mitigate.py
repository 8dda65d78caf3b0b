"""The command `crossaudit mitigate`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Level, LogLevel, RunDir, Verbose, state

if TYPE_CHECKING:
    import pyarrow as pa


class KeepPositions(StrEnum):
    """The text positions that every cross-attention layer may attend to."""

    eos = "eos"
    words = "words"
    all = "all"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(
        rich_help_panel=panel, epilog="Example: crossaudit mitigate run --bos-scale 1.25 --bos-scale 2 --keep eos"
    )(mitigate)


def mitigate(
    run: RunDir,
    bos_scale: Annotated[
        list[float] | None,
        typer.Option(metavar="FACTOR", help="Factor for the BOS logit (default: 1, 1.25, 2, 4). Repeatable."),
    ] = None,
    keep: Annotated[
        list[KeepPositions] | None,
        typer.Option(help="Text positions that stay visible (default: try all three). Repeatable."),
    ] = None,
    captions: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of confirmed captions.")] = 100,
    ordinary: Annotated[
        int, typer.Option(min=0, metavar="N", help="Maximum number of captions that were not selected.")
    ] = 50,
    seeds: Annotated[
        list[int] | None, typer.Option(metavar="SEED", help="Seeds (default: those of `generate`). Repeatable.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="DIR", help="An open_clip folder for CLIP scores, if the run has no CLIP.")
    ] = None,
    log_level: LogLevel = Level.warning,
    verbose: Verbose = False,
) -> None:
    """Measure mitigation: regenerate a run's confirmed captions with the same seeds, without and with mitigation.

    Also regenerates ordinary captions, to measure the loss of quality. Writes the
    tables mitigation and mitigation_summary, and rewrites the report. Rerun the
    command to resume. Results for other settings on the same captions are added
    to the earlier ones.
    """
    from pipelines.console.progress import Reporter
    from pipelines.runs.mitigate import BOS_SCALES, Request, mitigate_run

    scales, keeps = tuple(bos_scale or BOS_SCALES), tuple(str(word) for word in keep or KeepPositions)
    request = Request(scales, keeps, captions, ordinary, seeds, clip)
    _print(mitigate_run(run, request, Reporter(verbose=state.verbose), log_level.value))
    typer.echo(f"{run.rstrip('/')}/report.html")


def _print(summary: pa.Table) -> None:
    """Print one line per setting: the captions still copied, and the CLIP score of ordinary captions."""
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
