"""The command `crossaudit mitigate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Level, LogLevel, RunDir, Verbose, state

if TYPE_CHECKING:
    import pyarrow as pa


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(
        rich_help_panel=panel,
        epilog="Example: crossaudit mitigate run --method padding --method rescale:keep=words",
    )(mitigate)


def mitigate(
    run: RunDir,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SETTING=VALUE,...]",
            help="rescale, padding, attenuate, stabilise, delayed_guidance, dilute or weak_guidance, with settings "
            "(default: several of each that needs no other file and has a meaning for the model). Repeatable.",
        ),
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
    empty_pooled: Annotated[
        bool,
        typer.Option(
            "--empty-pooled",
            help="Give the model the pooled vector of the empty prompt too (Stable Diffusion XL, 3, 3.5, FLUX.1), "
            "which no method changes.",
        ),
    ] = False,
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
    from pipelines.runs.mitigate import Request, mitigate_run

    request = Request(method, captions, ordinary, seeds, clip, empty_pooled)
    _print(mitigate_run(run, request, Reporter(verbose=state.verbose), log_level.value))
    typer.echo(f"{run.rstrip('/')}/report.html")


def _print(summary: pa.Table) -> None:
    """Print one line per setting: the captions still copied, and the CLIP score of ordinary captions."""
    from rich.table import Table

    from pipelines.console.terminal import Console

    table = Table("method", "settings", "still copied", "near misses", "similarity", "CLIP, ordinary", "s/image")
    for column in table.columns[2:]:
        column.justify = "right"
    rows = summary.to_pylist()
    ordinary = {(row["method"], row["settings"]): row for row in rows if row["caption_set"] == "ordinary"}
    for row in rows:
        if row["caption_set"] == "confirmed":
            other = ordinary.get((row["method"], row["settings"]), {})
            figures = (row["median_similarity"], other.get("clip_score"))
            shown = ["" if figure is None else f"{figure:.3f}" for figure in figures]
            above = f"{row['captions_above']:,} of {row['captions']:,}"
            near = f"{row['captions_near']:,}"
            table.add_row(row["method"], row["settings"], above, near, *shown, f"{row['seconds_per_image']:.2f}")
    Console().print(table)
