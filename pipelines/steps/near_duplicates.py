"""Near: what connects images with their near duplicates by lists, out of core (audit/cells.py).

A sample of the vectors -> the centres of the lists -> every vector in its lists, sorted by them -> pairs inside of
each list. Of images with the same bytes only the first takes part: a picture that is a million files of the same bytes
costs no more than one. How many pairs that misses is measured by an exact scan for a few images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audit.duplicates import cells
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from audit.search.exact import vectors_of
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.identical_images import COPIES, LINK
from pipelines.tables import embeddings
from pipelines.tables.blocks import blocks, numbers

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

SAMPLE, MEASURED, CENTRES, LISTS, PAIRS = "_image_sample", "_image_scanned", "_centres", "_lists", "_scanned_pairs"
# Images that are put into lists together, and rows of the lists that are compared in one shard: each looks into every
# block, which costs more than 20 ms.
BLOCK, RANGE = 1 << 17, 1 << 21


def run(run: Run, counts: Mapping[str, int], links: str, threshold: float) -> None:
    """Writes `links` (schema LINK), of pairs at or above `threshold`, and PAIRS, to measure them by."""
    ledger, images = run.ledger, sum(counts.values())
    count = cells.lists_of(images)
    shards, ranges = blocks(counts, BLOCK), ranges_of(images)
    if set(ledger.parts(links)) != {shard.name for shard in ranges}:
        sample = partial(_sample, images=images, seed=run.config.select.seed)
        learn = partial(_learn, count=count, seed=run.config.select.seed)
        run.execute(Step("cluster: sample", SAMPLE, "images", ledger, sample), shards)
        run.execute(Step("cluster: centres", CENTRES, "sets", ledger, learn), [Shard("00000", None, 0, 1)])
        run.execute(Step("cluster: lists", LISTS, "images", ledger, _assign), shards)
        link = partial(_link, links=links, threshold=threshold)
        run.execute(Step("cluster", links, "lists", ledger, link, partial(_on_lost_list, links=links)), ranges)
    for part in ledger.parts(LISTS):  # several times as large as the embeddings
        ledger.remove(LISTS, part)
    run.execute(Step("cluster: recall", PAIRS, "images", ledger, partial(_scan, threshold=threshold)), shards)


def ranges_of(images: int) -> list[Shard]:
    """The lists of so many images, in ranges of about RANGE rows."""
    count = cells.lists_of(images)
    parts = max(1, min(count, -(-images * min(cells.EACH, count) // RANGE)))
    edges = [count * part // parts for part in range(parts + 1)]
    return [Shard(f"{part:05d}", None, *edges[part : part + 2]) for part in range(parts)]


def recall(ledger: Ledger, image_F: np.ndarray, first_F: np.ndarray) -> dict[str, Any]:
    """Of the pairs of an image in the exact scan, the share whose other image is in its cluster.

    It is the mean over images, so that one picture of a million copies does not stand for all, and None without pairs.
    """
    found = ledger.read(PAIRS)
    one_M, other_M = found["first"].to_numpy(), found["image"].to_numpy()
    joined_M = _first(one_M, image_F, first_F) == _first(other_M, image_F, first_F)
    _, image_M, count_I = np.unique(one_M, return_inverse=True, return_counts=True)
    share_I = np.bincount(image_M, joined_M) / count_I
    return {"recall": float(share_I.mean()) if len(share_I) else None, "images": len(share_I), "pairs": len(one_M)}


def sentence(found: Mapping[str, Any]) -> str:
    """What `recall` found, in words."""
    if not found["pairs"]:
        return "no pair to measure the lists by"
    return f"lists connect {found['recall']:.1%} of {found['pairs']:,} pairs, as the mean of {found['images']:,} images"


def _first(number_M: np.ndarray, image_F: np.ndarray, first_F: np.ndarray) -> np.ndarray:
    """The first image of the cluster of each: itself if it is in no pair."""
    at_M = np.searchsorted(image_F, number_M).clip(max=max(0, len(image_F) - 1))
    return np.where(image_F[at_M] == number_M, first_F[at_M], number_M) if len(image_F) else number_M


def _distinct(worker: Worker, shard: Shard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers [N], vectors [N, E]) of the images of each part that no image before has the bytes of."""
    low, high = numbers(shard)
    again = worker.ledger.between(COPIES, "image", low, high)["image"].to_numpy()
    table, first = embeddings.table(worker.config.confirm.embedders[0]), shard.source[0]
    for part in shard.source[1]:
        vectors_NE = vectors_of(worker.ledger.read(table, part, ["vector"])["vector"])
        number_N = first + np.arange(len(vectors_NE))
        kept_N = (number_N >= low) & (number_N < high) & ~np.isin(number_N, again)
        yield number_N[kept_N], vectors_NE[kept_N]
        first += len(vectors_NE)


def _sample(worker: Worker, shard: Shard, images: int, seed: int) -> Tables:
    """The images that lists are learned from, and those whose pairs are counted."""
    wanted = {SAMPLE: cells.FROM_A_LIST * cells.lists_of(images), MEASURED: cells.SCANNED}
    found: dict[str, list[Any]] = {table: [] for table in wanted}
    for number_N, vectors_NE in _distinct(worker, shard):
        for salt, (table, count) in enumerate(wanted.items()):
            drawn_N = cells.drawn(number_N, images, count, 2 * seed + salt)
            found[table].append((number_N[drawn_N], vectors_NE[drawn_N]))
    return {table: _with_vectors({"image": _joined(rows, 0)}, _joined(rows, 1)) for table, rows in found.items()}


def _learn(worker: Worker, shard: Shard, count: int, seed: int) -> Tables:
    sample_SE = vectors_of(worker.ledger.read(SAMPLE, columns=["vector"])["vector"])
    centres_KE = cells.learned(sample_SE, count, seed)
    return {CENTRES: _with_vectors({"list": np.arange(len(centres_KE), dtype=np.int32)}, centres_KE)}


def _assign(worker: Worker, shard: Shard) -> Tables:
    """The vectors of images in each of their lists, by list."""
    centres_KE = vectors_of(_cached(worker, CENTRES)["vector"])
    rows = [(n, v, cells.assigned(v, centres_KE, cells.EACH)) for n, v in _distinct(worker, shard)]
    number_N, vectors_NE, list_NL = (_joined(rows, column) for column in range(3))
    order_M = np.argsort(list_NL, axis=None, kind="stable")
    image_M = order_M // list_NL.shape[1]
    return {LISTS: _with_vectors({"list": list_NL.ravel()[order_M], "image": number_N[image_M]}, vectors_NE[image_M])}


def _link(worker: Worker, shard: Shard, links: str, threshold: float) -> Tables:
    with tempfile.TemporaryFile() as file:
        pairs_M2 = cells.near_in_lists(*_mapped(worker.ledger, shard, file), threshold)
    return {links: pa.table([pairs_M2[:, 0], pairs_M2[:, 1]], schema=LINK)}


def _mapped(ledger: Ledger, shard: Shard, file: IO[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lists [N], numbers [N], vectors [N, E] in the file) of a range of lists: one may be larger than memory."""
    rows, width = [], 1
    for part in ledger.ranged(LISTS, "list", shard.start, shard.stop):
        rows.append((part["list"].to_numpy(), part["image"].to_numpy()))
        width = part.schema.field("vector").type.list_size
        file.write(np.ascontiguousarray(vectors_of(part["vector"])).data)
    file.flush()
    list_N, number_N = _joined(rows, 0), _joined(rows, 1)
    shape = len(list_N), width
    return (
        list_N,
        number_N,
        np.memmap(file, np.float16, "r", shape=shape) if len(list_N) else np.empty(shape, np.float16),
    )


def _scan(worker: Worker, shard: Shard, threshold: float) -> Tables:
    """The pairs of the measured images with all images of the shard."""
    measured = _cached(worker, MEASURED)
    number_S, vectors_SE = measured["image"].to_numpy(), vectors_of(measured["vector"]).astype(np.float32)
    found = []
    for number_N, vectors_NE in _distinct(worker, shard):
        one, other = np.nonzero(vectors_SE @ vectors_NE.astype(np.float32).T >= threshold)
        found.append((number_S[one], number_N[other]))
    one_M, other_M = _joined(found, 0), _joined(found, 1)
    apart_M = one_M != other_M
    return {PAIRS: pa.table([one_M[apart_M], other_M[apart_M]], schema=LINK)}


def _on_lost_list(_ledger: Ledger, shard: Shard, kind: str, message: str, links: str) -> Tables:
    error = {"stage": "cluster", "kind": kind, "message": f"list {shard.start}: {message}"}
    return {links: LINK.empty_table(), "errors": errors_table([error])}


def _cached(worker: Worker, table: str) -> pa.Table:
    if table not in worker.cache:
        worker.cache[table] = worker.ledger.read(table)
    found: pa.Table = worker.cache[table]
    return found


def _joined(rows: Sequence[tuple[np.ndarray, ...]], column: int) -> np.ndarray:
    return np.concatenate([row[column] for row in rows])


def _with_vectors(columns: Mapping[str, np.ndarray], vectors_NE: np.ndarray) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.ravel()), vectors_NE.shape[1])
    return pa.table({**columns, "vector": vectors})
