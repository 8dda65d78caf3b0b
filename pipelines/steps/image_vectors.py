"""Embed images from their source, reading ahead while the embedders work."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from audit import schema
from audit.errors import AuditError
from audit.images.decoding import STORED, UPRIGHT, decode_each
from audit.record.ledger import Tables, errors_table
from pipelines.reading import images
from pipelines.tables.embeddings import stored_table, table
from pipelines.tables.training_images import primary

if TYPE_CHECKING:
    from torch import Tensor

    from audit.embedding.embedder import Embedder
    from pipelines.engine.worker import Worker


BATCH = 64


def vectors_at(worker: Worker, places: pa.Table) -> Tables:
    """Embed the images at `places` (schema INDEX) and return the tables `embeddings_*` and `errors`."""
    assert worker.config.images is not None
    names, first = worker.config.confirm.embedders, primary(worker.config.images)
    rows: dict[str, list[dict[str, Any]]] = {UPRIGHT: [], STORED: []}
    errors: list[dict[str, Any]] = []
    vectors: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for batch in _batches_ahead(worker, places, [worker.embedder(name) for name in names]):
        errors += [unreadable(place, "unreadable_image", found) for place, found in batch if isinstance(found, str)]
        readable = [(place, found) for place, found in batch if not isinstance(found, str)]
        for orientation, of_it in rows.items():
            there = [(place, found) for place, found in readable if orientation in found.inputs]
            for place, found in there:
                known = {name: place[name] for name in ("image_id", "file", "row", "key")}
                of_it.append(known | {"sha256": found.sha256})
            for n, name in enumerate(names) if there else ():
                inputs = [found.inputs[orientation][n] for _, found in there]
                vectors[name, orientation].append(worker.embedder(name).vectors(inputs))
    tables = {table(name): _table(rows[first], vectors[name, first], worker.embedder(name).width) for name in names}
    if first == UPRIGHT and rows[STORED]:
        for name in names:
            width = worker.embedder(name).width
            tables[stored_table(name)] = _table(rows[STORED], vectors[name, STORED], width)
    return tables | {"errors": errors_table(errors)}


class Prepared(NamedTuple):
    """Hold an image that was read: the sha256 of its file, and the input of each embedder by orientation."""

    sha256: str
    inputs: dict[str, list[Tensor]]


Batch = list[tuple[dict[str, Any], Prepared | str]]


def _batches_ahead(worker: Worker, places: pa.Table, embedders: Sequence[Embedder]) -> Iterator[Batch]:
    """Yield batches of (place, what was read there or why reading failed), in order.

    While the embedders work on one batch, threads read, decode and preprocess the next one. Pillow releases the GIL
    meanwhile. Only the embedders' inputs are kept in memory, not the images.
    """
    options = worker.config.images
    assert options is not None

    def prepare(item: tuple[dict[str, Any], bytes | AuditError | None]) -> tuple[dict[str, Any], Prepared | str]:
        place, content = item
        if isinstance(content, AuditError):
            return place, content.what
        try:
            found = decode_each(content, options.crop, options.exif)
            inputs = {way: [embedder.preprocess(picture) for embedder in embedders] for way, picture in found.items()}
        except Exception as error:
            return place, f"{type(error).__name__}: {error}"
        assert content is not None
        return place, Prepared(hashlib.sha256(content).hexdigest(), inputs)

    contents = zip(places.to_pylist(), images.read_each(places, options.column), strict=True)
    threads = worker.config.engine.cpus_per_worker
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as decoders:

        def following() -> Batch:
            return list(decoders.map(prepare, islice(contents, BATCH)))

        coming = reader.submit(following)
        while batch := coming.result():
            coming = reader.submit(following)
            yield batch


def _table(rows: list[dict[str, Any]], vectors: list[np.ndarray], width: int) -> pa.Table:
    layout = schema.embeddings(width)
    flat = np.concatenate([np.zeros((0, width), np.float32), *vectors]).astype(np.float16).reshape(-1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=layout.field("vector").type)
    head = pa.Table.from_pylist(rows, schema=pa.schema(list(layout)[:-1]))
    return head.append_column(layout.field("vector"), column)


def unreadable(place: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
    """Return the row of `errors` for an image that cannot be read.

    Args:
        place: The location of the image, with `file` and `row`.
        kind: The kind of the error.
        message: What went wrong.

    Returns:
        The row, a dictionary of columns of `errors`.
    """
    where = {"stage": "embed", "file": place["file"], "row": place["row"], "rows": 1}
    return where | {"kind": kind, "message": message[:300]}
