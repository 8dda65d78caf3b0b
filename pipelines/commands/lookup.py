"""The command `crossaudit lookup`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit lookup run --image mine.png")(lookup)


def lookup(
    run: RunDir,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Find training images like this one.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Find rows with this source URL.")] = None,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Find rows from this host and its subdomains.")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="Find captions that contain this text.")] = None,
    verbose: Verbose = False,
) -> None:
    """Answer a rights holder: is a work in the dataset, under which captions, and does the model reproduce it?

    Pass exactly one of --image, --url, --host and --text. An image is compared
    with the run's own index.
    """
    from audit.errors import AuditError, UsageError
    from pipelines.console.progress import waiting
    from pipelines.console.table import show
    from reports import lookup as ask

    given = {name: value for name, value in (("url", url), ("host", host), ("text", text)) if value is not None}
    if len(given) + (image is not None) != 1:
        raise UsageError("pass exactly one of --image, --url, --host and --text")
    if image is not None:
        from pipelines.runs.lookup import look_up

        try:
            content = image.read_bytes()
        except OSError as error:
            raise AuditError(
                f"cannot be read: {error.strerror}", where=str(image), hint="Pass an image file."
            ) from error
        with waiting("searching the training images"):
            answer = look_up(run, content, str(image))
        show(answer.nearest)
        if answer.note:
            typer.echo(answer.note)
        if answer.captions is None:
            return
        found = answer.captions
    else:
        [(name, value)] = given.items()
        found = {"url": ask.of_url, "host": ask.of_host, "text": ask.of_text}[name](run, value)
    if len(found):
        show(found)
    typer.echo(_summary(found))


def _summary(found: pa.Table) -> str:
    rows = found.to_pylist()
    if not rows:
        return "No caption of this run is related to it."
    captions = {row["caption_id"] for row in rows}
    copied = {row["caption_id"]: row for row in rows if row["copied"]}
    made = f"{len(captions):,} caption{'s' * (len(captions) != 1)}; " + (
        f"with {len(copied):,} of them the model copied such an image" if copied else _uncopied(rows)
    )
    again = [row for row in copied.values() if row["fresh_generations"]]
    if again:
        k, n = (sum(row[name] for row in again) for name in ("fresh_copies", "fresh_generations"))
        made += f", and again with {k:,} of {n:,} fresh seeds"
    return made + "."


def _uncopied(rows: Sequence[dict[str, Any]]) -> str:
    """Return the message for captions with no copy; it says how similar their nearest generation is, if known."""
    alike = [row["similarity"] for row in rows if row["similarity"] is not None]
    near = [row["similarity"] for row in rows if row["near_miss"]]
    if near:
        return (
            f"near miss: no generation exceeds the threshold for a copy, but the nearest has similarity "
            f"{max(alike):.3f}, as high as some copies have. Look at it before you draw a conclusion"
        )
    if alike:
        return f"no generation of this run copied such an image (the nearest has similarity {max(alike):.3f})"
    return "no generation has such an image among its nearest neighbours, so we do not know whether the model copies it"
