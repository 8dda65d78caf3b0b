"""Find the training images that match a picture, in a run's own index."""

from __future__ import annotations

import hashlib
from pathlib import Path

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


def nearest_images(uri: str, image: Path) -> pa.Table:
    """Return the training images most similar to a picture, most similar first.

    Args:
        uri: The path or URI of a finished run.
        image: The picture.

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
        content = image.read_bytes()
        pictures = list(decode_each(content, config.images.crop, "both").values())
    except Exception as error:  # Pillow raises many types
        raise AuditError(
            f"cannot be read as an image: {error}", where=str(image), hint="Pass an image file."
        ) from error
    worker, name = Worker(on_this_machine(config)), config.confirm.embedders[0]
    embedder = worker.embedder(name)
    manifest.model(name, embedder.fingerprint)
    near = image_search.find(worker, name, embedder.embed(pictures), image_search.NEIGHBOURS)
    limit = manifest.data.thresholds[name]["verbatim"]
    # The picture and the training image may each be in either EXIF orientation; the better match counts.
    background_QK = np.repeat(near.background[:, None], near.ids.shape[1], axis=1)
    each = zip(near.similarity.ravel().tolist(), background_QK.ravel().tolist(), near.ids.ravel().tolist(), strict=True)
    best = {id_: (value, background) for value, background, id_ in sorted(each)}  # the most similar is the last
    similarity_of = dict(sorted(best.items(), key=lambda item: -item[1][0])[: image_search.NEIGHBOURS])
    same_bytes, places = _places(ledger, name, list(similarity_of), hashlib.sha256(content).hexdigest())
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
