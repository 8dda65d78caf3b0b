"""Which training images is a generation most like: exact nearest neighbours.

Shapes: Q queries, N images, K neighbours, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa


def vectors_of(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """A column of fixed_size_list<float16 or float32> as an array [N, E] of the same type."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size)


def nearest(
    queries_QE: np.ndarray, shards: Iterable[tuple[Sequence[str] | np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k images of highest inner product with each query, over all shards: an exact scan.

    `shards` yields (image ids [N], vectors [N, E] float16 or float32), one shard in memory at a time.
    Returns (ids [Q, K] of str, similarities [Q, K] float32), most similar first, equal ones by id; K is less than k
    if there are fewer images. The similarities do not depend on how the images are cut into shards, nor do the ids,
    but for ties at the K-th place.
    """
    import faiss

    queries_QE = np.ascontiguousarray(queries_QE, dtype=np.float32)
    best_ids = np.empty((len(queries_QE), 0), dtype="U32")
    best = np.empty((len(queries_QE), 0), dtype=np.float32)
    for ids, vectors_NE in shards:
        if len(vectors_NE) == 0:
            continue
        vectors_NE = np.ascontiguousarray(vectors_NE, dtype=np.float32)
        found, indices = faiss.knn(queries_QE, vectors_NE, min(k, len(vectors_NE)), metric=faiss.METRIC_INNER_PRODUCT)
        best_ids = np.concatenate([best_ids, np.asarray(ids, dtype=str)[indices]], axis=1)
        best = np.concatenate([best, found], axis=1)
        order = np.lexsort((best_ids, -best), axis=1)[:, :k]
        best_ids = np.take_along_axis(best_ids, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
    return best_ids, best
