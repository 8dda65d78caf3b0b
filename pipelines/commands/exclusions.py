"""crossaudit exclusions"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose


class Policy(StrEnum):
    """What becomes of the rows."""

    drop = "drop"
    dedup = "dedup"


def register(app: typer.Typer, panel: str) -> None:
    example = "Example: crossaudit exclusions run --policy dedup"
    app.command(rich_help_panel=panel, epilog=example)(exclusions)


def exclusions(
    run: RunDir,
    policy: Annotated[Policy, typer.Option(help="Drop all of them, or keep the first of each family.")] = Policy.drop,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The file to write: .parquet, .csv or .jsonl (default: RUN/exclusions.parquet)."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write the dataset rows to drop, or to keep once, before the next training.

    These are all rows whose caption is verbatim or partial, or whose image such a caption reproduces.

    The columns are file, row, key, why and more. `crossaudit clean` makes a clean copy of the data set from the Parquet
    file; CSV and JSON lines are for other tools.
    """
    from pipelines.console.progress import waiting
    from reports.exclusions import write_exclusions

    with waiting("collecting the rows"):
        done = write_exclusions(run, policy.value, out)
    typer.echo(
        f"{done.path}: {done.dropped:,} rows to drop, {done.kept:,} to keep once; "
        f"confirmed captions: {done.captions:,}, groups of rows: {done.groups:,}"
    )
    if done.without_row:
        typer.echo(f"{done.without_row:,} images that are reproduced belong to no row: they are not in this list")
