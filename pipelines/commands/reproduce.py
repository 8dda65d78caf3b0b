"""The command `crossaudit reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose, check_writable


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog='Example: crossaudit reproduce run "a caption" --out case.png')(reproduce)


def reproduce(
    run: RunDir,
    case: Annotated[str, typer.Argument(metavar="CASE", help="A confirmed caption, or its caption_id.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the image to this PNG file.")] = None,
    verbose: Verbose = False,
) -> None:
    """Regenerate one confirmed case and compare it with the record. Exits with code 1 if they disagree."""
    from pipelines.console.terminal import say
    from pipelines.runs.reproduce import reproduce as again
    from pipelines.runs.written_files import write_picture
    from reports.tabular import check_suffix

    if out is not None:
        check_suffix(out, (".png",))
        check_writable(out)
    found = again(run, case)
    if out is not None:
        problem = write_picture(run, out, found.image, found.caption)
        if problem:
            say(f"{out}: `crossaudit purge` will not remove this file: {problem}", err=True)
    say(f"{found.verdict}, seed {found.seed}: {found.caption}")
    typer.echo(f"similarity to the training image: {found.similarity:.4f}, recorded {found.recorded:.4f}")
    if found.difference is None:
        typer.echo("the run's generation was not kept, so only the similarity can be compared")
    else:
        typer.echo(f"largest pixel difference from the run's generation: {found.difference} of 255 levels")
    typer.echo("agrees with the record" if found.agrees else "does NOT agree with the record")
    if not found.agrees:
        raise typer.Exit(1)
