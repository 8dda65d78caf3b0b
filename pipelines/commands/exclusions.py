"""The command `crossaudit exclusions`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose


class Policy(StrEnum):
    """What to do with the affected rows."""

    drop = "drop"
    dedup = "dedup"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit exclusions run --policy dedup"
    app.command(rich_help_panel=panel, epilog=example)(exclusions)


def exclusions(
    run: RunDir,
    policy: Annotated[
        Policy, typer.Option(help="Drop all affected rows, or keep the first of each group.")
    ] = Policy.drop,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Output file: .parquet, .csv or .jsonl (default: RUN/exclusions.parquet)."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """List the dataset rows to drop, or to deduplicate, before the next training.

    A row is listed if the verdict on its caption is verbatim or partial, or if
    such a caption reproduces its image.

    The columns include file, row, key and why. `crossaudit clean` reads the
    Parquet file and writes a clean copy of the dataset; CSV and JSON lines are
    for other tools.
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
        typer.echo(f"{done.without_row:,} reproduced images belong to no row and are not in this list")
