"""Find the training images most similar to a generation: exact nearest neighbours.

Shapes: Q queries, N images, K neighbours, F images found so far, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def vectors_of(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """Convert a column of fixed_size_list<float16 or float32> to an array [N, E] of the same type."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size)


def nearest(
    queries_QE: np.ndarray, shards: Iterable[tuple[pa.Array, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k images with the highest inner product with each query by an exact scan of all shards.

    How the images are split into shards affects only the last bits of the float32 similarities, and which of several
    equal images comes K-th.

    Args:
        queries_QE: Vectors of the queries.
        shards: Yields (image ids [N] of string, vectors [N, E] float16 or float32). One shard at a time is in memory,
            and only the best results are kept.
        k: Number of images per query.

    Returns:
        (ids [Q, K] of str, similarities [Q, K] float32), most similar first, equal ones by id. K is less than k if
        there are fewer images.
    """
    import faiss

    queries_QE = np.ascontiguousarray(queries_QE, dtype=np.float32)
    heap = faiss.ResultHeap(len(queries_QE), k, keep_max=True)
    found_F, ids_F, seen = np.empty(0, np.int64), np.empty(0, object), 0
    scratch_NE = np.empty((0, queries_QE.shape[1]), dtype=np.float32)
    for ids, vectors_NE in shards:
        if len(vectors_NE) and len(queries_QE):
            if len(scratch_NE) < len(vectors_NE):  # reusing memory takes a third of the time of allocating it
                scratch_NE = np.empty(vectors_NE.shape, dtype=np.float32)
            single_NE = scratch_NE[: len(vectors_NE)]
            single_NE[:] = vectors_NE
            count = min(k, len(vectors_NE))
            best_QK, place_QK = faiss.knn(queries_QE, single_NE, count, metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(best_QK, place_QK + seen)
            if heap.I.max() >= seen:
                held = np.unique(heap.I[heap.I >= 0])
                old, new = held[held < seen], held[held >= seen] - seen
                ids_F = np.concatenate([ids_F[np.searchsorted(found_F, old)], ids.take(pa.array(new)).to_pylist()])
                found_F = held
        seen += len(vectors_NE)
    heap.finalize()
    place_QK, best_QK = heap.I[:, : min(k, seen)], heap.D[:, : min(k, seen)]
    ids_QK = ids_F[np.searchsorted(found_F, place_QK)].astype("U32")
    order_QK = np.lexsort((ids_QK, -best_QK), axis=1)
    return np.take_along_axis(ids_QK, order_QK, axis=1), np.take_along_axis(best_QK, order_QK, axis=1)
