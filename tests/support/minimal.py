"""Write minimal runs: only the tables that exclusions and exports read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit import schema
from audit.duplicates.captions import caption_id
from pipelines.reading.images import image_id
from tests.support.manifests import manifest as manifest_of


def place(file: str, row: int, key: str, content: str | None = None) -> dict[str, Any]:
    """Return a row of `embeddings_sscd`.

    Args:
        file: The file of the image.
        row: The number of the image in the file.
        key: The key of the image.
        content: Names the bytes of the image. Images with the same `content` have the same bytes; None makes them
            unique.
    """
    where = {"image_id": image_id(file, row), "file": file, "row": row, "key": key}
    return where | {"sha256": content or f"{file} {row}", "vector": np.zeros(4, np.float16)}


def row(file: str, number: int, caption: str, image: dict[str, Any] | None = None, key: str | None = None) -> dict:
    """Return a row of `rows`.

    Args:
        file: The caption file.
        number: The number of the row in the file.
        caption: The caption.
        image: The row's own image, from `place`, or None.
        key: The key of the row (default: the key of the image).
    """
    own = {"key": key or (image["key"] if image else None), "image_id": image["image_id"] if image else None}
    return {"caption_id": caption_id(caption), "caption": caption, "file": file, "row": number} | own


def reproduced(
    caption: str, image: dict[str, Any], similarity: float, verdict: str = "verbatim", family: str | None = None
) -> dict[str, Any]:
    """Return a row of `verdicts` for a caption that reproduces an image.

    Args:
        caption: The caption.
        image: The image, from `place`.
        similarity: The similarity of the two images, or of a region if `verdict` is not `verbatim`.
        verdict: The verdict.
        family: A caption of the family of captions (default: the caption itself).
    """
    column = "similarity" if verdict == "verbatim" else "region_similarity"
    named = {"caption": caption, "verdict": verdict, "family": caption_id(family or caption)}
    return named | {"image_id": image["image_id"], column: similarity}


def copied(caption: str, image: dict[str, Any], similarity: float, how: str = "verbatim") -> dict[str, Any]:
    """Return a row of `copied_images`. `write_run` adds such a row for each copy in `verdicts`.

    Args:
        caption: The caption.
        image: The image, from `place`.
        similarity: The similarity of the two images, or of a region if `how` is not `verbatim`.
        how: The type of the copy.
    """
    column = "similarity" if how == "verbatim" else "region_similarity"
    return {
        "caption_id": caption_id(caption),
        "image_id": image["image_id"],
        "copy_type": how,
        "seed": 1,
        column: similarity,
    }


def write_run(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    verdicts: Iterable[dict[str, Any]],
    images: Iterable[dict[str, Any]] = (),
    more_copied: Iterable[dict[str, Any]] = (),
    errors: Iterable[dict[str, Any]] = (),
    clusters: Iterable[Sequence[dict[str, Any]]] = (),
    **manifest: Any,
) -> Path:
    """Write a finished run and return its folder.

    Args:
        folder: Where to write the run.
        rows: Rows of `rows`, from `row`.
        verdicts: Rows of `verdicts`, from `reproduced`. Captions without one are `not_selected`.
        images: Rows of `embeddings_sscd`, from `place`.
        more_copied: Rows of `copied_images` in addition to those of `verdicts`, from `copied`.
        errors: Rows of `errors`.
        clusters: The clusters of images, each a list of images from `place`.
        **manifest: Further keys of the manifest.
    """
    rows = list(rows)
    copies = Counter(row["caption"] for row in rows)
    given = {verdict["caption"]: verdict for verdict in verdicts}
    complete = [
        {"caption_id": caption_id(text), "caption": text, "row_count": count, "verdict": "not_selected"}
        | given.get(text, {})
        for text, count in copies.items()
    ]
    best = [
        {"caption_id": caption_id(text), "copy_type": row["verdict"], "seed": 1} | row
        for text, row in given.items()
        if row["verdict"] in ("verbatim", "partial")
    ]
    members = [
        {"image_id": image["image_id"], "cluster": cluster[0]["image_id"], "cluster_size": len(cluster)}
        for cluster in clusters
        for image in cluster
    ]
    tables = {
        "image_clusters": pa.Table.from_pylist(members, schema.IMAGE_CLUSTERS),
        "rows": pa.Table.from_pylist(rows, schema.ROWS),
        "verdicts": pa.Table.from_pylist(complete, schema.VERDICTS),
        "copied_images": pa.Table.from_pylist([*best, *more_copied], schema.COPIED_IMAGES),
        "errors": pa.Table.from_pylist(list(errors), schema.ERRORS),
        "embeddings_sscd": pa.Table.from_pylist(list(images), schema.embeddings(4)),
    }
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        pq.write_table(table, folder / name / "00000.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest_of(**manifest)))
    return folder
