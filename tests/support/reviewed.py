"""Write a finished run whose confirmed captions are known to be copies or not, for tests of reviews."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from audit import schema
from audit.duplicates.captions import caption_id
from audit.images.decoding import decode
from audit.record.ledger import Ledger
from audit.record.manifest_entries import StageEntry, ThresholdEntry
from pipelines.configuration.settings import load_config
from pipelines.engine.manifest import Manifest
from pipelines.reading import images
from pipelines.reading.input_files import find_images
from pipelines.review.pictures import altered
from tests.support.toy import encode, png

# The model copies the images of the first captions. Those of the others look like nothing in the dataset.
COPIES, MISTAKES, CONTROLS = 8, 4, 12
CAPTIONS = [f"a confirmed caption, number {number} <b>" for number in range(COPIES + MISTAKES)]
CONTROL_CAPTIONS = [f"a control caption, number {number}" for number in range(CONTROLS)]
# This control caption really reproduces a training image, so it is no decoy.
REPRODUCING = caption_id(CONTROL_CAPTIONS[0])
THRESHOLD = 0.9


def reviewable(config_path: Path, out: Path) -> Path:
    """Write the run of a configuration into `out`, and return its path."""
    config, given = load_config(config_path, out=str(out))
    ledger = Ledger(config.out)
    manifest = Manifest.open(ledger, config, given)
    [place, *others] = [images.index(file, "image")[0] for file in find_images(config)]
    places = pa.concat_tables([place, *others])
    contents = [content or b"" for content in images.read(places, "image")]
    trained = [
        row | {"sha256": hashlib.sha256(data).hexdigest()} for row, data in zip(_rows(places), contents, strict=True)
    ]
    tables: dict[str, list[dict[str, Any]]] = {"embeddings_sscd": [row | {"vector": [1.0, 0.0]} for row in trained]}
    for number, text in enumerate(CAPTIONS):
        image = encode(altered(decode(contents[number]))) if number < COPIES else png(5000 + number)
        _confirmed(tables, text, trained[number], contents[number], image, sampled=number % 2 == 0)
    for number, text in enumerate(CONTROL_CAPTIONS):
        found = {"caption_id": caption_id(text), "purpose": "control", "seed": 1}
        _add(tables, "generations", found | {"status": "ok", "image": png(7000 + number)})
        near = trained[len(CAPTIONS) + number]["image_id"]
        _add(tables, "matches", found | _match(near, 0.5 + number / 100))
    layouts = {name: value for name, value in vars(schema).items() if isinstance(value, pa.Schema)}
    for name, rows in tables.items():
        layout = {"generations": schema.generations(()), "embeddings_sscd": schema.embeddings(2)}.get(name)
        table = pa.Table.from_pylist(rows, schema=layout or layouts[name.upper()])
        parts = {"": table}
        if name == "generations":
            parts = {f"{purpose}-": table.filter(pa.array(_is(table, purpose))) for purpose in ("discover", "control")}
        for prefix, part in parts.items():
            ledger.write(name, f"{prefix}00000", part)
            manifest.part(name, f"{prefix}00000", len(part))
    manifest.data.thresholds = {"sscd": {kind: _threshold(kind) for kind in ("verbatim", "region")}}
    manifest.data.stages = {"embed": StageEntry(rows_in=len(trained), rows_out=len(trained))}
    manifest.finish()
    return out


def _confirmed(
    tables: dict[str, list[dict[str, Any]]],
    text: str,
    trained: dict[str, Any],
    content: bytes,
    image: bytes,
    sampled: bool,
) -> None:
    """Add the rows of a caption whose generation the audit takes for a copy."""
    ident, image_id = caption_id(text), trained["image_id"]
    known = {"caption_id": ident, "caption": text, "row_count": 1}
    _add(tables, "captions", known)
    _add(tables, "scores", {"caption_id": ident, "score": 5.0, "selected_by": "sample" if sampled else "budget"})
    found = {"caption_id": ident, "purpose": "discover", "seed": 1}
    _add(tables, "generations", found | {"status": "ok", "image": image})
    _add(tables, "matches", found | _match(image_id, 0.95))
    copied = {"caption_id": ident, "image_id": image_id, "orientation": "upright", "copy_type": "verbatim", "seed": 1}
    _add(tables, "copied_images", copied | {"similarity": 0.95})
    judged = {"verdict": "verbatim", "risk": "low", "family": ident, "image_id": image_id, "similarity": 0.95}
    _add(tables, "verdicts", known | judged | {"fresh_copies": 0, "fresh_generations": 0, "support": "untested"})
    _add(tables, "image_clusters", {"image_id": image_id, "cluster": image_id, "cluster_size": 1})
    stored = {"orientation": "upright", "image": encode(decode(content))}
    _add(tables, "evidence", trained | stored)


def _add(tables: dict[str, list[dict[str, Any]]], name: str, row: dict[str, Any]) -> None:
    tables.setdefault(name, []).append(row)


def _rows(places: pa.Table) -> list[dict[str, Any]]:
    return places.select(["image_id", "file", "row", "key"]).to_pylist()


def _is(table: pa.Table, purpose: str) -> np.ndarray:
    return np.array([word == purpose for word in table["purpose"].to_pylist()])


def _match(image_id: str, similarity: float) -> dict[str, Any]:
    near = {"embedder": "sscd", "rank": 1, "image_id": image_id, "orientation": "upright", "similarity": similarity}
    return near | {"background": 0.0}


def _threshold(kind: str) -> ThresholdEntry:
    excluded = {
        "caption_id": REPRODUCING,
        "caption": CONTROL_CAPTIONS[0],
        "similarity": 0.99,
        "image_id": "0" * 32,
        "seeds_alike": 4,
        "seeds": 4,
        "next_similarity": None,
        "p": None,
        "reasons": ["copied with every seed"],
    }
    known: dict[str, Any] = {"value": THRESHOLD, "source": "controls", "embedder": "sscd", "kind": kind, "floor": 0.5}
    known |= {"floor_source": "the weights", "rate": 0.05, "controls": CONTROLS, "used": CONTROLS - 1, "without": 0}
    known |= {"beyond": 0, "excluded": [excluded], "tail": None, "notes": []}
    return ThresholdEntry.model_validate(known)
