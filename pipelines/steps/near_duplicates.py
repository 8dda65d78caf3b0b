"""Link images to their near duplicates within cells of similar images, out of core (audit/duplicates/cells.py).

A sample of the vectors -> the centres of the cells -> every vector in its cells, sorted by cell -> pairs within each
cell. Only the first of several images with the same bytes takes part, so a million identical files cost no more than
one. An exact scan for a few images measures how many pairs the cells miss.
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

# The seed of the draws of images.
SEED = 0
SAMPLE, MEASURED, CENTRES, CELLS, PAIRS = "_image_sample", "_image_scanned", "_centres", "_cells", "_scanned_pairs"
# Number of images that are assigned to cells together, and of cell rows that are compared in one shard. Each shard
# reads from every block, which costs more than 20 ms.
BLOCK, RANGE = 1 << 17, 1 << 21


def run(run: Run, counts: Mapping[str, int], links: str, threshold: float) -> None:
    """Write the links between near duplicates, and the pairs of an exact scan (PAIRS) that measure their recall.

    Args:
        run: The run.
        counts: The number of rows of each part of the embeddings table.
        links: The table to write (schema LINK).
        threshold: The similarity from which a pair is linked.
    """
    ledger, images = run.ledger, sum(counts.values())
    count = cells.cells_for(images)
    shards, ranges = blocks(counts, BLOCK), ranges_of(images)
    sample = partial(_sample, images=images, seed=SEED)
    run.execute(Step("cluster: sample", SAMPLE, "images", ledger, sample, also=(MEASURED,)), shards)
    if set(ledger.parts(links)) != {shard.name for shard in ranges}:
        learn = partial(_learn, count=count, seed=SEED)
        run.execute(Step("cluster: centres", CENTRES, "sets", ledger, learn), [Shard("00000", None, 0, 1)])
        run.execute(Step("cluster: cells", CELLS, "images", ledger, _assign), shards)
        link = partial(_link, links=links, threshold=threshold)
        run.execute(Step("cluster", links, "cells", ledger, link, partial(_on_lost_cell, links=links)), ranges)
    for part in ledger.parts(CELLS):  # CELLS is several times as large as the embeddings
        ledger.remove(CELLS, part)
    run.execute(Step("cluster: recall", PAIRS, "images", ledger, partial(_scan, threshold=threshold)), shards)


def ranges_of(images: int) -> list[Shard]:
    """Split the cells for a number of images into ranges of about RANGE rows."""
    count = cells.cells_for(images)
    parts = max(1, min(count, -(-images * min(cells.EACH, count) // RANGE)))
    edges = [count * part // parts for part in range(parts + 1)]
    return [Shard(f"{part:05d}", None, *edges[part : part + 2]) for part in range(parts)]


def recall(ledger: Ledger, image_F: np.ndarray, first_F: np.ndarray) -> dict[str, Any]:
    """Measure the share of the pairs in the exact scan whose two images are in the same cluster.

    Args:
        ledger: The ledger of the run.
        image_F: The numbers of the images that have duplicates.
        first_F: The number of the first image in the cluster of each.

    Returns:
        `recall`: the mean share over images, so that one picture with a million copies does not dominate, or None
        without pairs; `images` and `pairs`: how many were measured.
    """
    found = ledger.read(PAIRS)
    one_M, other_M = found["first"].to_numpy(), found["image"].to_numpy()
    joined_M = _first(one_M, image_F, first_F) == _first(other_M, image_F, first_F)
    _, image_M, count_I = np.unique(one_M, return_inverse=True, return_counts=True)
    share_I = np.bincount(image_M, joined_M) / count_I
    return {"recall": float(share_I.mean()) if len(share_I) else None, "images": len(share_I), "pairs": len(one_M)}


def sentence(found: Mapping[str, Any]) -> str:
    """Describe the result of `recall` in a sentence."""
    if not found["pairs"]:
        return "no pairs to measure the recall of the cells"
    return f"cells connect {found['recall']:.1%} of {found['pairs']:,} pairs (mean over {found['images']:,} images)"


def _first(number_M: np.ndarray, image_F: np.ndarray, first_F: np.ndarray) -> np.ndarray:
    """Return the first image of the cluster of each image, or the image itself if it is in no pair."""
    at_M = np.searchsorted(image_F, number_M).clip(max=max(0, len(image_F) - 1))
    return np.where(image_F[at_M] == number_M, first_F[at_M], number_M) if len(image_F) else number_M


def _distinct(worker: Worker, shard: Shard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers [N] and vectors [N, E] of the images of each part, skipping images with earlier bytes."""
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
    """Draw the images that the cells are learned from, and those whose pairs are counted."""
    wanted = {SAMPLE: cells.PER_CELL * cells.cells_for(images), MEASURED: cells.SCANNED}
    found: dict[str, list[Any]] = {table: [] for table in wanted}
    for number_N, vectors_NE in _distinct(worker, shard):
        for salt, (table, count) in enumerate(wanted.items()):
            drawn_N = cells.drawn(number_N, images, count, 2 * seed + salt)
            found[table].append((number_N[drawn_N], vectors_NE[drawn_N]))
    return {table: _with_vectors({"image": _joined(rows, 0)}, _joined(rows, 1)) for table, rows in found.items()}


def _learn(worker: Worker, shard: Shard, count: int, seed: int) -> Tables:
    sample_SE = vectors_of(worker.ledger.read(SAMPLE, columns=["vector"])["vector"])
    centres_KE = cells.learned(sample_SE, count, seed)
    return {CENTRES: _with_vectors({"cell": np.arange(len(centres_KE), dtype=np.int32)}, centres_KE)}


def _assign(worker: Worker, shard: Shard) -> Tables:
    """Return each vector once for each of its cells, sorted by cell."""
    centres_KE = vectors_of(_cached(worker, CENTRES)["vector"])
    rows = [(n, v, cells.assigned(v, centres_KE, cells.EACH)) for n, v in _distinct(worker, shard)]
    number_N, vectors_NE, cell_NL = (_joined(rows, column) for column in range(3))
    order_M = np.argsort(cell_NL, axis=None, kind="stable")
    image_M = order_M // cell_NL.shape[1]
    return {CELLS: _with_vectors({"cell": cell_NL.ravel()[order_M], "image": number_N[image_M]}, vectors_NE[image_M])}


def _link(worker: Worker, shard: Shard, links: str, threshold: float) -> Tables:
    with tempfile.TemporaryFile() as file:
        pairs_M2 = cells.near_in_cells(*_mapped(worker.ledger, shard, file), threshold)
    return {links: pa.table([pairs_M2[:, 0], pairs_M2[:, 1]], schema=LINK)}


def _mapped(ledger: Ledger, shard: Shard, file: IO[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells [N], image numbers [N] and memory-mapped vectors [N, E] of a range, which may exceed the memory."""
    rows, width = [], 1
    for part in ledger.ranged(CELLS, "cell", shard.start, shard.stop):
        rows.append((part["cell"].to_numpy(), part["image"].to_numpy()))
        width = part.schema.field("vector").type.list_size
        file.write(np.ascontiguousarray(vectors_of(part["vector"])).data)
    file.flush()
    cell_N, number_N = _joined(rows, 0), _joined(rows, 1)
    shape = len(cell_N), width
    return (
        cell_N,
        number_N,
        np.memmap(file, np.float16, "r", shape=shape) if len(cell_N) else np.empty(shape, np.float16),
    )


def _scan(worker: Worker, shard: Shard, threshold: float) -> Tables:
    """Return the pairs of the measured images with the images of the shard."""
    measured = _cached(worker, MEASURED)
    number_S, vectors_SE = measured["image"].to_numpy(), vectors_of(measured["vector"]).astype(np.float32)
    found = []
    for number_N, vectors_NE in _distinct(worker, shard):
        one, other = np.nonzero(vectors_SE @ vectors_NE.astype(np.float32).T >= threshold)
        found.append((number_S[one], number_N[other]))
    one_M, other_M = _joined(found, 0), _joined(found, 1)
    apart_M = one_M != other_M
    return {PAIRS: pa.table([one_M[apart_M], other_M[apart_M]], schema=LINK)}


def _on_lost_cell(_ledger: Ledger, shard: Shard, kind: str, message: str, links: str) -> Tables:
    error = {"stage": "cluster", "kind": kind, "message": f"cell {shard.start}: {message}"}
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
