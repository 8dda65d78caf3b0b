"""crossaudit lookup"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


def register(app: typer.Typer, panel: str) -> None:
    app.command(rich_help_panel=panel, epilog="Example: crossaudit lookup run --image mine.png")(lookup)


def lookup(
    run: RunDir,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="An image: is it a training image?")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="The source URL of a row of the data set.")] = None,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="A host, and all below it.")] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="Captions that contain it.")] = None,
    verbose: Verbose = False,
) -> None:
    """Look up what a rights holder asks for: is it in the data set, under which captions, does the model reproduce it?

    Give one of --image, --url, --host and --text. An image is looked up in the run's own index.
    """
    from audit.errors import UsageError
    from pipelines.commands.query import show
    from pipelines.console.progress import waiting
    from reports import lookup as ask

    given = {name: value for name, value in (("url", url), ("host", host), ("text", text)) if value is not None}
    if len(given) + (image is not None) != 1:
        raise UsageError("give one of --image, --url, --host and --text")
    if image is not None:
        from pipelines.runs.lookup import nearest_images

        with waiting("looking among the training images"):
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
    """What to say where no training image is the same picture: how alike the nearest is."""
    best = max((row["similarity"] for row in rows if row["similarity"] is not None), default=None)
    if best is None:
        return "There are no training images to compare it with."
    if any(row["same"] == "near" for row in rows):
        return (
            f"A near miss: the most alike has similarity {best:.3f}, below the run's threshold but as alike as copies "
            "are. Look at the images to tell whether one is the same picture."
        )
    return f"None of them looks like the same picture (the most alike has similarity {best:.3f})."


def _summary(found: pa.Table) -> str:
    rows = found.to_pylist()
    if not rows:
        return "No caption of this run has to do with it."
    captions = {row["caption_id"] for row in rows}
    copied = {row["caption_id"]: row for row in rows if row["copied"]}
    made = f"{len(captions):,} caption{'s' * (len(captions) != 1)}; " + (
        f"{len(copied):,} of them made the model copy such an image" if copied else _uncopied(rows)
    )
    again = [row for row in copied.values() if row["fresh_generations"]]
    if again:
        k, n = (sum(row[name] for row in again) for name in ("fresh_copies", "fresh_generations"))
        made += f", and did again with {k:,} of {n:,} fresh seeds"
    return made + "."


def _uncopied(rows: Sequence[dict[str, Any]]) -> str:
    """What to say where no caption copied such an image: how near its generations came, if there are any."""
    alike = [row["similarity"] for row in rows if row["similarity"] is not None]
    near = [row["similarity"] for row in rows if row["near_miss"]]
    if near:
        return (
            f"a near miss: no generation is beyond the threshold of a copy, but the most alike has similarity "
            f"{max(alike):.3f}, as alike as copies are. Look at it before you conclude anything"
        )
    if alike:
        return f"no generation of this run copied such an image (the most alike has similarity {max(alike):.3f})"
    return "none was generated with such an image among its nearest, so whether the model copies it is not known"
