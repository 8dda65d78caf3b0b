"""Embed: every training image to one vector an embedder, and what cannot be read to `errors`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from audit import schema
from pipelines.context import Run, Step
from pipelines.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.reading import images
from pipelines.stages.ingest import IMAGES

if TYPE_CHECKING:
    from pipelines.worker import Worker

BATCH = 64


def run(run: Run) -> None:
    if run.config.images is None:
        return
    embedders = run.config.confirm.embedders
    with run.manifest.stage("embed") as stage:
        shards = []
        for name in run.ledger.parts(IMAGES):
            shards += slices(name, name, run.ledger.rows(IMAGES, name), run.config.engine.shard_rows)
        left = partial(_left, embedders=embedders)
        step = Step("embed", table(embedders[0]), "images", run.ledger, _embed, left, tuple(embedders))
        run.execute(step, shards)
        stage["rows_in"] = sum(map(len, shards))
        stage["rows_out"] = [run.manifest.refresh(table(name)) for name in embedders][0]


def table(embedder: str) -> str:
    return f"embeddings_{embedder}"


def decode(content: bytes | None) -> Image.Image:
    """The image, loaded; raises whatever Pillow raises, its limit on decompression bombs included."""
    if content is None:
        raise OSError("the source has no bytes for it")
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def places_of(ledger: Ledger, image_ids: Sequence[str]) -> dict[str, pa.Table]:
    """Where images lie (one row of schema INDEX each), by id."""
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    found = {}
    for _, part in ledger.each(IMAGES):
        part = part.filter(pc.is_in(part["image_id"], value_set=wanted))
        found.update({id_: part.slice(row, 1) for row, id_ in enumerate(part["image_id"].to_pylist())})
    return found


def _embed(worker: Worker, shard: Shard) -> Tables:
    names = worker.config.confirm.embedders
    assert worker.config.images is not None
    places = worker.ledger.slice(IMAGES, shard.source, shard.start, shard.stop)
    contents = zip(places.to_pylist(), images.read(places, worker.config.images.column), strict=True)
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in _batches(contents):
        readable = []
        for place, content in batch:
            try:
                readable.append(decode(content))
            except Exception as error:
                errors.append(_error(place, "unreadable_image", f"{type(error).__name__}: {error}"))
                continue
            assert content is not None
            digest = hashlib.sha256(content).hexdigest()
            rows.append({name: place[name] for name in ("image_id", "file", "row", "key")} | {"sha256": digest})
        for name in names:
            vectors[name].append(worker.embedder(name).embed(readable))
    tables = {table(name): _table(rows, vectors[name], worker.embedder(name).width) for name in names}
    return tables | {"errors": errors_table(errors)}


def _batches(contents: Iterator[tuple[dict, bytes | None]]) -> Iterator[list[tuple[dict, bytes | None]]]:
    while batch := list(islice(contents, BATCH)):
        yield batch


def _table(rows: list[dict[str, Any]], vectors: list[np.ndarray], width: int) -> pa.Table:
    layout = schema.embeddings(width)
    flat = np.concatenate([np.zeros((0, width), np.float32), *vectors]).astype(np.float16).reshape(-1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=layout.field("vector").type)
    head = pa.Table.from_pylist(rows, schema=pa.schema(list(layout)[:-1]))
    return head.append_column(layout.field("vector"), column)


def _left(ledger: Ledger, shard: Shard, kind: str, message: str, embedders: Sequence[str]) -> Tables:
    [place] = ledger.slice(IMAGES, shard.source, shard.start, shard.stop).to_pylist()
    # No embedder is loaded here; an empty table of any width gives way to one with rows.
    empty = {table(name): schema.embeddings(1).empty_table() for name in embedders}
    return empty | {"errors": errors_table([_error(place, kind, message)])}


def _error(place: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
    where = {"stage": "embed", "file": place["file"], "row": place["row"], "rows": 1}
    return where | {"kind": kind, "message": message[:300]}
