"""Find the training images that match a picture, in a run's own index, and the captions that are related to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.images.decoding import decode_each
from audit.record.ledger import Ledger
from audit.record.manifest_entries import ThresholdEntry
from pipelines.engine.worker import Worker
from pipelines.runs.finished_run import finished, on_this_machine
from pipelines.steps import image_search
from pipelines.tables import embeddings
from reports.lookup import of_images

NEAREST = pa.schema(
    [
        ("image_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("similarity", pa.float64()),
        # bytes: identical file; picture: at or above the run's `verbatim` threshold; near: below the threshold, but at
        # or above the embedder's floor; null: none of these
        ("same", pa.string()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What a run knows about a picture.

    Attributes:
        nearest: The training images most similar to it (schema NEAREST).
        note: What follows if none of them is the same picture; "" if one is.
        captions: The captions whose rows have such an image or that made the model copy one (as
            `reports.lookup.of_images` lists them); None if no training image is the same picture or a near miss.
    """

    nearest: pa.Table
    note: str
    captions: pa.Table | None


def look_up(uri: str, content: bytes, name: str) -> Answer:
    """Find the training images that are the same picture, or else near misses, and the captions related to them.

    Takes and raises the same as `nearest_images`.
    """
    nearest = nearest_images(uri, content, name)
    rows = nearest.to_pylist()
    same = [row["image_id"] for row in rows if row["same"] in ("bytes", "picture")]
    near = [row["image_id"] for row in rows if row["same"] == "near"]
    alike = same or near
    return Answer(nearest, "" if same else _not_found(rows), of_images(uri, alike) if alike else None)


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


def nearest_images(uri: str, content: bytes, name: str) -> pa.Table:
    """Return the training images most similar to a picture, most similar first.

    Args:
        uri: The path or URI of a finished run.
        content: The bytes of the picture's file.
        name: The name of the file, for errors.

    Returns:
        A table of schema NEAREST.

    Raises:
        AuditError: The file is not an image, the run is not finished or has no images, or the embedder's weights are
            not those of the run.
    """
    ledger, manifest, config = finished(uri)
    if config.images is None or not ledger.parts(embeddings.table(config.confirm.embedders[0])):
        raise AuditError(
            "the run has no training images to search", where=ledger.uri, hint="Use --url, --host or --text instead."
        )
    try:
        pictures = list(decode_each(content, config.images.crop, "both").values())
    except Exception as error:  # Pillow raises many types
        raise AuditError(f"cannot be read as an image: {error}", where=name, hint="Pass an image file.") from error
    worker, decides = Worker(on_this_machine(config)), config.confirm.embedders[0]
    embedder = worker.embedder(decides)
    manifest.model(decides, embedder.fingerprint)
    near = image_search.find(worker, decides, embedder.embed(pictures), image_search.NEIGHBOURS)
    limit = manifest.data.thresholds[decides]["verbatim"]
    # The picture and the training image may each be in either EXIF orientation; the better match counts.
    background_QK = np.repeat(near.background[:, None], near.ids.shape[1], axis=1)
    each = zip(near.similarity.ravel().tolist(), background_QK.ravel().tolist(), near.ids.ravel().tolist(), strict=True)
    best = {id_: (value, background) for value, background, id_ in sorted(each)}  # the most similar is the last
    similarity_of = dict(sorted(best.items(), key=lambda item: -item[1][0])[: image_search.NEIGHBOURS])
    same_bytes, places = _places(ledger, decides, list(similarity_of), hashlib.sha256(content).hexdigest())
    rows = []
    for place in places:
        similarity, background = similarity_of.get(place["image_id"], (None, 0.0))
        same = None if similarity is None else _same(similarity, background, limit)
        same = "bytes" if place["image_id"] in same_bytes else same
        rows.append(place | {"similarity": similarity, "same": same})
    rows.sort(key=lambda row: (row["same"] != "bytes", -(row["similarity"] or 0.0), row["image_id"]))
    return pa.Table.from_pylist(rows, schema=NEAREST)


def _same(similarity: float, background: float, limit: ThresholdEntry) -> str | None:
    alike = limit.floor is None or similarity + background >= limit.floor
    if alike and limit.value is not None and similarity >= limit.value:
        return "picture"
    return "near" if alike and limit.floor is not None else None


def _places(ledger: Ledger, embedder: str, ids: list[str], sha256: str) -> tuple[set[str], list[dict]]:
    """Return the ids of images with this hash, and the places of those images and of the images in `ids`."""
    columns = ["image_id", "file", "row", "key", "sha256"]
    same, found = set(), []
    for _, part in ledger.each(embeddings.table(embedder), columns):
        bytes_same = pc.equal(part["sha256"], sha256)
        same |= set(part.filter(bytes_same)["image_id"].to_pylist())
        wanted = pc.or_(bytes_same, pc.is_in(part["image_id"], value_set=pa.array(ids, pa.string())))
        found += part.filter(wanted).drop_columns("sha256").to_pylist()
    return same, found
