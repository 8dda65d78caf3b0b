"""crossaudit purge"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose


class KeepPictures(StrEnum):
    """Whose pictures stay."""

    confirmed = "confirmed"
    none = "none"


def register(app: typer.Typer, panel: str) -> None:
    app.command(rich_help_panel=panel, epilog="Example: crossaudit purge run --keep confirmed")(purge)


def purge(
    run: RunDir,
    keep: Annotated[
        KeepPictures, typer.Option(help="Keep the pictures of confirmed captions and the evidence, or none.")
    ],
    verbose: Verbose = False,
) -> None:
    """Remove generations and training images from a finished run, for good: they may be personal data.

    Rows, scores, vectors and verdicts stay, and the manifest records what was removed. The report is written again.

    The files that `reproduce` and `explain` wrote go too, if this machine has them; other pictures in RUN are named.
    """
    from pipelines.console.progress import waiting
    from pipelines.console.terminal import say
    from pipelines.runs.purge import purge as remove

    with waiting("removing pictures"):
        purged = remove(run, keep.value)
    for table, pictures in purged.pictures.items():
        if not table.startswith("_"):
            typer.echo(f"{table}: {pictures:,} pictures removed")
    for file in purged.files:
        say(f"{file}: removed")
    for file in purged.left:
        say(f"{file}; it may show pictures, and was left", err=True)
    typer.echo(f"{run.rstrip('/')}/report.html")
