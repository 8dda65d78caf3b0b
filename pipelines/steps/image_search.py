"""Find the nearest training images, exactly or with an inverted file, with or without a background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.images.decoding import STORED, decode
from audit.record.ledger import Ledger, Shard, Tables
from audit.record.manifest_entries import InvertedFileEntry
from audit.search import inverted_file
from audit.search.exact import nearest
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.tables import embeddings, training_images

if TYPE_CHECKING:
    import faiss

    from pipelines.configuration.config import Config
    from pipelines.engine.worker import Worker


# EMBEDDER.faiss is stored next to the part EMBEDDER of this table, which marks it as complete. This is not a working
# table: `lookup` and `mitigate` search finished runs, and audits search finished indexes.
IVF = "inverted_files"
# Working table: what the measurement of the recall found.
RECALL = "_recall"
MEASURED = pa.schema([("queries", pa.int64()), ("found", pa.int64())])


# Number of nearest background images whose mean similarity is subtracted (SSCD's score normalisation).
BACKGROUND_NEIGHBOURS = 2
# Number of training images that each generation is compared with.
NEIGHBOURS = 5
RECALL_QUERIES = 256


class Neighbours(NamedTuple):
    """Hold the training images nearest to each query, most similar first.

    Attributes:
        ids: Image ids [Q, K].
        similarity: Similarities minus the background [Q, K].
        orientation: The orientation in which each image is that similar, UPRIGHT or STORED [Q, K].
        background: The value that was subtracted [Q].
    """

    ids: np.ndarray
    similarity: np.ndarray
    orientation: np.ndarray
    background: np.ndarray


def find(worker: Worker, embedder: str, vectors_QE: np.ndarray, k: int) -> Neighbours:
    """Find the k training images nearest to each vector.

    If an image was embedded in two orientations, the more similar one counts.

    Args:
        worker: The worker, whose run holds the embeddings.
        embedder: The embedder of the vectors.
        vectors_QE: The query vectors [Q, E].
        k: The number of images per query.

    Returns:
        The images and their similarities.
    """
    assert worker.config.images is not None
    ids_QK, similarity_QK = _find(worker, embedder, vectors_QE, k)
    background_Q = background(worker, embedder, vectors_QE)
    primary_QK = np.full(ids_QK.shape, training_images.primary(worker.config.images), object)
    found = Neighbours(ids_QK, similarity_QK, primary_QK, background_Q)
    stored = embeddings.stored_table(embedder)
    if worker.ledger.parts(stored):
        ids_QK, similarity_QK = nearest(vectors_QE, embeddings.embedded(worker.ledger, stored), k)
        stored_QK = np.full(ids_QK.shape, STORED, object)
        found = _better(found, Neighbours(ids_QK, similarity_QK, stored_QK, background_Q))
    return found._replace(similarity=found.similarity - background_Q[:, None])


def _find(worker: Worker, embedder: str, vectors_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, similarities) [Q, K] from the table with one vector per image."""
    table = embeddings.table(embedder)
    if worker.config.index.type == "ivf":
        places_QC = inverted_file.candidates(_opened(worker, embedder), vectors_QE)
        return inverted_file.ranked(vectors_QE, places_QC, embeddings.readers(worker.ledger, table), k)
    return nearest(vectors_QE, embeddings.embedded(worker.ledger, table), k)


def _better(first: Neighbours, second: Neighbours) -> Neighbours:
    """Merge two results and return as many images as `first` has, each image once."""
    found = []
    for row in zip(*first[:3], *second[:3], strict=True):
        ids_M, similarity_M, orientation_M = (np.concatenate([row[n], row[n + 3]]) for n in range(3))
        order_M = np.lexsort((ids_M, -similarity_M))
        _, once = np.unique(ids_M[order_M], return_index=True)
        best_K = order_M[np.sort(once)][: len(row[0])]
        found.append((ids_M[best_K], similarity_M[best_K], orientation_M[best_K]))
    if not found:
        return first
    ids_QK, similarity_QK, orientation_QK = (np.stack(column) for column in zip(*found, strict=True))
    return Neighbours(ids_QK, similarity_QK, orientation_QK, first.background)


def background(worker: Worker, embedder: str, vectors_QE: np.ndarray) -> np.ndarray:
    """Return what SSCD's score normalisation (arXiv 2202.10261) subtracts from similarities.

    Args:
        worker: The worker, whose configuration names the background.
        embedder: The embedder of the vectors.
        vectors_QE: The query vectors [Q, E].

    Returns:
        One value per query [Q]; 0 without a background.
    """
    path = worker.config.embedder(embedder).background
    if path is None:
        return np.zeros(len(vectors_QE), np.float32)
    _, similarity_QK = nearest(
        vectors_QE, embeddings.embedded(Ledger(path), embeddings.table(embedder)), BACKGROUND_NEIGHBOURS
    )
    return similarity_QK.mean(axis=1)


def measure(run: Run) -> None:
    """Measure how often the inverted files find the nearest image of a generation, and record it in the manifest."""
    if run.config.index.type != "ivf":
        return
    for name in run.config.confirm.embedders:
        step = Step(f"index: recall of {name}", RECALL, "embedders", run.ledger, _recall, None, (name,))
        run.execute(step, [Shard(name, name, 0, 1)])
        [built], [found] = (
            ledger.read(table, name).to_pylist()
            for ledger, table in ((index_of(run.config, name), IVF), (run.ledger, RECALL))
        )
        recall = found["found"] / found["queries"] if found["queries"] else None
        known = InvertedFileEntry(recipe=built["recipe"], queries=found["queries"], recall_at_1=recall)
        run.manifest.data.index = run.manifest.data.index | {name: known}


def index_of(config: Config, embedder: str) -> Ledger:
    """Return the ledger with the inverted file: the index that the vectors come from, if it has one, else the run."""
    if config.index.path is not None and embedder in Ledger(config.index.path).parts(IVF):
        return Ledger(config.index.path)
    return Ledger(config.out)


def _opened(worker: Worker, embedder: str) -> faiss.Index:
    if (IVF, embedder) not in worker.cache:
        with index_of(worker.config, embedder).local(IVF, f"{embedder}.faiss") as file:
            worker.cache[IVF, embedder] = inverted_file.opened(file)  # memory-mapped, so it outlives its file name
    index: faiss.Index = worker.cache[IVF, embedder]
    return index


def _recall(worker: Worker, shard: Shard) -> Tables:
    pictures = [decode(content) for content in _some_generations(worker.ledger, RECALL_QUERIES)]
    vectors_QE = worker.embedder(shard.source).embed(pictures)
    _, exact_Q1 = nearest(vectors_QE, embeddings.embedded(worker.ledger, embeddings.table(shard.source)), 1)
    _, found_Q1 = _find(worker, shard.source, vectors_QE, 1)
    hits = int((found_Q1 >= exact_Q1 - 1e-5).sum())  # a different image counts if it is as near as the nearest
    return {RECALL: pa.table([[len(pictures)], [hits]], schema=MEASURED)}


def _some_generations(ledger: Ledger, count: int) -> Sequence[bytes]:
    found: list[bytes] = []
    for _, part in ledger.each("generations", ["image", "status"]):
        found += part.filter(pc.field("status") == "ok")["image"].to_pylist()
        if len(found) >= count:
            break
    return found[:count]
