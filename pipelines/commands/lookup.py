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
    from audit.errors import UsageError
    from pipelines.console.progress import waiting
    from pipelines.console.table import show
    from reports import lookup as ask

    given = {name: value for name, value in (("url", url), ("host", host), ("text", text)) if value is not None}
    if len(given) + (image is not None) != 1:
        raise UsageError("pass exactly one of --image, --url, --host and --text")
    if image is not None:
        from pipelines.runs.lookup import nearest_images

        with waiting("searching the training images"):
            nearest = nearest_images(run, image)
        show(nearest)
        rows = nearest.to_pylist()
        same = [row["image_id"] for row in rows if row["same"] in ("bytes", "picture")]
        if not same:
            typer.echo(_not_found(rows))
            same = [row["image_id"] for row in rows if row["same"] == "near"]
        if not same:
            return
        found = ask.of_images(run, same)
    else:
        [(name, value)] = given.items()
        found = {"url": ask.of_url, "host": ask.of_host, "text": ask.of_text}[name](run, value)
    if len(found):
        show(found)
    typer.echo(_summary(found))


def _not_found(rows: Sequence[dict[str, Any]]) -> str:
    """Return the message for a picture that matches no training image; it says how similar the nearest one is."""
    best = max((row["similarity"] for row in rows if row["similarity"] is not None), default=None)
    if best is None:
        return "The run has no training images to compare with."
    if any(row["same"] == "near" for row in rows):
        return (
            f"Near miss: the nearest image has similarity {best:.3f}. That is below the run's threshold, but as high "
            "as some copies have. Look at the images to decide whether one of them is the same picture."
        )
    return f"No training image looks like the same picture (the nearest has similarity {best:.3f})."


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
