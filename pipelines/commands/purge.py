"""The command `crossaudit purge`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose


class KeepPictures(StrEnum):
    """The pictures to keep."""

    confirmed = "confirmed"
    none = "none"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit purge run --keep confirmed")(purge)


def purge(
    run: RunDir,
    keep: Annotated[
        KeepPictures, typer.Option(help="Keep the pictures of confirmed captions and the evidence, or keep none.")
    ],
    verbose: Verbose = False,
) -> None:
    """Permanently remove generations and training images, which may be personal data, from a finished run.

    Rows, scores, vectors and verdicts stay. The manifest records what was
    removed, and the report is rewritten.

    Also removes the files that `reproduce` and `explain` wrote on this machine.
    Lists other files in RUN that may show pictures.
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
        say(f"{file}; not removed, but may show pictures", err=True)
    typer.echo(f"{run.rstrip('/')}/report.html")
