"""Find approximate nearest neighbours for many queries of the same images: an inverted file with exact re-ranking.

Shapes: Q queries, N images, E embedding width, C candidates, K neighbours, M pairs of query and candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import faiss

# Up to this many images a code takes one byte per dimension, beyond it an eighth of a byte.
LARGE = 10_000_000
MOST_LISTS, PROBES, CANDIDATES = 1 << 16, 64, 64
# Images per list to learn the lists from; faiss warns if there are fewer.
FROM_A_LIST = 40


def recipe(images: int, width: int) -> str:
    """Choose the faiss index for a number of vectors: IVF,SQ8, or OPQ,IVF,PQ with one byte per eight dimensions."""
    lists = max(1, min(int(4 * images**0.5), images // FROM_A_LIST, MOST_LISTS))
    if images <= LARGE or width % 8:
        return f"IVF{lists},SQ8"
    return f"OPQ{width // 8},IVF{lists},PQ{width // 8}"


def build(shards: Callable[[], Iterable[np.ndarray]], images: int, width: int, path: Path) -> str:
    """Build the index of all vectors and write it to a file.

    Args:
        shards: Yields the vectors [N, E] shard by shard. It is called twice, the first time for training.
        images: Number of vectors.
        width: Length of a vector.
        path: The file to write.

    Returns:
        The index's recipe, as from `recipe`.
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
    """Open the index in a file; its lists stay on disk until they are searched."""
    import faiss

    return faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def candidates(index: faiss.Index, queries_QE: np.ndarray) -> np.ndarray:
    """Find images that may be the nearest to each query.

    Args:
        index: The index.
        queries_QE: Vectors of the queries.

    Returns:
        Positions [Q, C] of images. C is less than CANDIDATES if there are fewer images.
    """
    import faiss

    lists = faiss.extract_index_ivf(index).nlist
    count = min(CANDIDATES, index.ntotal)
    places_QC = np.full((len(queries_QE), count), -1)
    for probes in (min(PROBES, lists), lists):  # search all lists if those probed hold too few images for a query
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
    """Rank candidates by their inner product with the query, computed from the original vectors.

    Args:
        queries_QE: Vectors of the queries.
        places_QC: Positions of the candidates, from `candidates`.
        shards: (number of images, function that reads their ids [N] and vectors [N, E]). A shard without candidates is
            not read.
        k: Number of images per query.

    Returns:
        The k best candidates, in the form of `audit.search.exact.nearest`.
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
