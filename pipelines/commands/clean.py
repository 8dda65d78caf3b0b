"""The command `crossaudit clean`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit clean run/exclusions.parquet 'laion/*.parquet' 'laion/*.tar' --out cleaned"
    app.command(rich_help_panel=panel, epilog=example)(clean)


def clean(
    exclusions: Annotated[
        str,
        typer.Argument(metavar="EXCLUSIONS", help="The file that `crossaudit exclusions` wrote.", show_default=False),
    ],
    dataset: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET",
            help="The caption and image files that the run read: paths, folders or globs.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where to write the copies. File names and subfolders stay the same.")
    ],
    verbose: Verbose = False,
) -> None:
    """Write a copy of the dataset without the rows to drop, and verify its row counts.

    Copies every format that `captions` and `images` accept. The rows that stay
    are copied byte for byte, except that Parquet files are re-encoded. In a tar
    file, all members of a dropped sample are removed. Never overwrites a file,
    and fails if a file is not the one that was audited.
    """
    from pipelines.console.terminal import say
    from pipelines.runs.clean import write_clean_copies

    write_clean_copies(exclusions, dataset, out, say)
