"""Approximate nearest neighbours for many queries of the same images: an inverted file, its candidates ranked anew.

Shapes: Q queries, N images, E embedding width, C candidates, M pairs of query and candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import faiss

# Beyond so many images a code takes an eighth of a byte a dimension, up to it a byte.
LARGE = 10_000_000
MOST_LISTS, PROBES, CANDIDATES = 1 << 16, 64, 64
# Images a list that the lists are learned from; with fewer faiss warns.
FROM_A_LIST = 40


def recipe(images: int, width: int) -> str:
    """The faiss index for so many vectors of that width: IVF,SQ8, or OPQ,IVF,PQ of one byte for eight dimensions."""
    lists = max(1, min(int(4 * images**0.5), images // FROM_A_LIST, MOST_LISTS))
    if images <= LARGE or width % 8:
        return f"IVF{lists},SQ8"
    return f"OPQ{width // 8},IVF{lists},PQ{width // 8}"


def build(shards: Callable[[], Iterable[np.ndarray]], images: int, width: int, path: Path) -> str:
    """Writes the index of all vectors to a file and returns its recipe.

    `shards()` yields the vectors [N, E] shard by shard; it is read twice, the first time to learn from.
    """
    import faiss

    name = recipe(images, width)
    index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
    step = max(1, images // (FROM_A_LIST * faiss.extract_index_ivf(index).nlist))
    index.train(np.concatenate([vectors_NE[::step].astype(np.float32) for vectors_NE in shards()]))
    for vectors_NE in shards():
        index.add(vectors_NE.astype(np.float32))
    faiss.write_index(index, str(path))
    return name


def opened(path: str) -> faiss.Index:
    """The index of a file, its lists left there until they are looked at."""
    import faiss

    return faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def candidates(index: faiss.Index, queries_QE: np.ndarray) -> np.ndarray:
    """The places [Q, C] of images that may be nearest; C is less than CANDIDATES if there are fewer images."""
    import faiss

    lists = faiss.extract_index_ivf(index).nlist
    count = min(CANDIDATES, index.ntotal)
    places_QC = np.full((len(queries_QE), count), -1)
    for probes in (min(PROBES, lists), lists):  # all of them, for a query whose lists hold too few
        short = (places_QC < 0).any(axis=1)
        if short.any():
            faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
            places_QC[short] = index.search(np.ascontiguousarray(queries_QE[short], np.float32), count)[1]
    return places_QC


def ranked(
    queries_QE: np.ndarray,
    places_QC: np.ndarray,
    shards: Iterable[tuple[int, Callable[[], tuple[pa.Array, np.ndarray]]]],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates of highest inner product, from their own vectors: as `audit.search.exact.nearest` gives them.

    `shards`: (number of images, what reads their ids [N] and vectors [N, E]); a shard without candidates is not read.
    """
    similarity_QC = np.full(places_QC.shape, -np.inf, dtype=np.float32)
    ids_QC = np.full(places_QC.shape, "", dtype="U32")
    start = 0
    for count, read in shards:
        q_M, c_M = np.nonzero((places_QC >= start) & (places_QC < start + count))
        if len(q_M):
            ids, vectors_NE = read()
            at_M = places_QC[q_M, c_M] - start
            vectors_ME = vectors_NE[at_M].astype(np.float32)
            similarity_QC[q_M, c_M] = np.einsum("me,me->m", queries_QE[q_M], vectors_ME)
            ids_QC[q_M, c_M] = ids.take(pa.array(at_M)).to_pylist()
        start += count
    order_QK = np.lexsort((ids_QC, -similarity_QC), axis=1)[:, :k]
    return np.take_along_axis(ids_QC, order_QK, axis=1), np.take_along_axis(similarity_QC, order_QK, axis=1)
