"""crossaudit clean"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    example = "Example: crossaudit clean run/exclusions.parquet 'laion/*.parquet' 'laion/*.tar' --out cleaned"
    app.command(rich_help_panel=panel, epilog=example)(clean)


def clean(
    exclusions: Annotated[
        str, typer.Argument(metavar="EXCLUSIONS", help="What `crossaudit exclusions` wrote.", show_default=False)
    ],
    dataset: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            help="The files of captions and images that the run read: paths, folders or globs.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where the copies go, under the same names and in the same folders.")
    ],
    verbose: Verbose = False,
) -> None:
    """Write a copy of the data set without the rows to drop, and prove its counts.

    Every format that `captions` and `images` accept is copied, and every byte of what stays is kept, except that
    Parquet is encoded anew. Of a tar, all members of a dropped sample go. Nothing is overwritten; a file other than
    the one audited is an error.
    """
    from pipelines.console.terminal import say
    from pipelines.runs.clean import write_clean_copies

    write_clean_copies(exclusions, dataset, out, say)
