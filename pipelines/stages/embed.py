"""Embed: every training image to one vector an embedder, and what cannot be read to `errors`."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError
from audit.images.decoding import STORED, UPRIGHT, decode, decode_each
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from audit.search.exact import vectors_of
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.reading import images
from pipelines.stages.ingest import IMAGES

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from audit.embedding.embedder import Embedder
    from pipelines.configuration.config import Images
    from pipelines.engine.worker import Worker

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
        stage["rows_in"] = listed(run.ledger)
        stage["rows_out"] = refreshed(run)


def refreshed(run: Run) -> int:
    """Bring the manifest's parts of the embeddings up to date; return how many images have a vector."""
    names = run.config.confirm.embedders
    for name in names:
        run.manifest.refresh(stored_table(name))
    return [run.manifest.refresh(table(name)) for name in names][0]


def listed(ledger: Ledger) -> int:
    """How many training images there are, readable or not."""
    return sum(ledger.rows(IMAGES, part) for part in ledger.parts(IMAGES))


def table(embedder: str) -> str:
    return f"embeddings_{embedder}"


def stored_table(embedder: str) -> str:
    """The table of second vectors: of images whose EXIF orientation is not the identity, as their pixels are stored.

    It is there with `images.exif: both` only, and only if the data set has such images.
    """
    return f"embeddings_{embedder}_stored"


def primary(options: Images) -> str:
    """The orientation of the pictures in `table`, of which every readable image has one."""
    return STORED if options.exif == "ignore" else UPRIGHT


Vectors = tuple[pa.Array, np.ndarray]


def readers(ledger: Ledger, name: str) -> Iterator[tuple[int, Callable[[], Vectors]]]:
    """(number of images, what reads their ids [N] and vectors [N, E]) of every part of a table of embeddings."""

    def read(part: str) -> Vectors:
        found = ledger.read(name, part, ["image_id", "vector"])
        return found["image_id"].combine_chunks(), vectors_of(found["vector"])

    for part in ledger.parts(name):
        yield ledger.rows(name, part), partial(read, part)


def embedded(ledger: Ledger, name: str) -> Iterator[Vectors]:
    """(image ids [N], vectors [N, E]) of a table of embeddings, part by part; while one is used, the next is read."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for _, read in readers(ledger, name):
            now, ahead = ahead, reader.submit(read)
            if now is not None:
                yield now.result()
        if ahead is not None:
            yield ahead.result()


def places_of(ledger: Ledger, image_ids: Sequence[str]) -> dict[str, pa.Table]:
    """Where images lie (one row of schema INDEX each), by id."""
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    found = {}
    for _, part in ledger.each(IMAGES):
        part = part.filter(pc.is_in(part["image_id"], value_set=wanted))
        found.update({id_: part.slice(row, 1) for row, id_ in enumerate(part["image_id"].to_pylist())})
    return found


# An image, and how it lies.
Turned = tuple[str, str]


def pictures(
    options: Images, places: Mapping[str, pa.Table], wanted: Iterable[Turned]
) -> Iterator[tuple[Turned, Image]]:
    """Read training images back from their source.

    Args:
        wanted: (image_id, orientation) of each; `places` has where they lie.

    Yields each once with its picture. Raises what `decode` raises.
    """
    for id_, orientation in sorted(set(wanted)):
        [content] = images.read(places[id_], options.column)
        yield (id_, orientation), decode(content, options.crop, orientation)


def _embed(worker: Worker, shard: Shard) -> Tables:
    return vectors_at(worker, worker.ledger.slice(IMAGES, shard.source, shard.start, shard.stop))


def vectors_at(worker: Worker, places: pa.Table) -> Tables:
    """The tables `embeddings_*` and `errors` of the images at places (schema INDEX)."""
    assert worker.config.images is not None
    names, first = worker.config.confirm.embedders, primary(worker.config.images)
    rows: dict[str, list[dict[str, Any]]] = {UPRIGHT: [], STORED: []}
    errors: list[dict[str, Any]] = []
    vectors: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for batch in _batches_ahead(worker, places, [worker.embedder(name) for name in names]):
        errors += [_error(place, "unreadable_image", found) for place, found in batch if isinstance(found, str)]
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
    """An image that was read: the sha256 of its file, and by orientation what each embedder takes of it."""

    sha256: str
    inputs: dict[str, list[Tensor]]


Batch = list[tuple[dict[str, Any], Prepared | str]]


def _batches_ahead(worker: Worker, places: pa.Table, embedders: Sequence[Embedder]) -> Iterator[Batch]:
    """Batches of (place, what was read there or why it could not be), in order.

    The next batch is read, decoded and preprocessed in threads while the embedders work on the last one: Pillow lets go
    of the interpreter meanwhile. What is kept of an image is as large as an embedder's input, not as the image.
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


def _left(ledger: Ledger, shard: Shard, kind: str, message: str, embedders: Sequence[str]) -> Tables:
    [place] = ledger.slice(IMAGES, shard.source, shard.start, shard.stop).to_pylist()
    # No embedder is loaded here; an empty table of any width gives way to one with rows.
    empty = {table(name): schema.embeddings(1).empty_table() for name in embedders}
    return empty | {"errors": errors_table([_error(place, kind, message)])}


def _error(place: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
    where = {"stage": "embed", "file": place["file"], "row": place["row"], "rows": 1}
    return where | {"kind": kind, "message": message[:300]}
