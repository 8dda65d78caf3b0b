"""Which training images is a generation most like: exact nearest neighbours, whole or by region.

Shapes: Q queries, N images, K neighbours, W windows, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from PIL import Image

    from audit.embedding import Embedder

# (left, top, right, bottom) as fractions of the image: four halves, four quadrants, the centre.
WINDOWS = (
    (0.0, 0.0, 1.0, 0.5),
    (0.0, 0.5, 1.0, 1.0),
    (0.0, 0.0, 0.5, 1.0),
    (0.5, 0.0, 1.0, 1.0),
    (0.0, 0.0, 0.5, 0.5),
    (0.5, 0.0, 1.0, 0.5),
    (0.0, 0.5, 0.5, 1.0),
    (0.5, 0.5, 1.0, 1.0),
    (0.25, 0.25, 0.75, 0.75),
)
# A window whose pixels deviate less than this from their mean (of 1, in every channel) is blank: all blanks are alike.
BLANK_DEVIATION = 0.06


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


def window_vectors(embedder: Embedder, images: Sequence[Image.Image]) -> np.ndarray:
    """The vectors [N, W, E] of every image's WINDOWS; those of a blank window are NaN."""
    from audit.embedding.descriptor import flatten

    crops, places = [], []
    for n, image in enumerate(images):
        rgb = flatten(image)
        for w, (left, top, right, bottom) in enumerate(WINDOWS):
            x0, x1 = round(left * rgb.width), round(right * rgb.width)
            y0, y1 = round(top * rgb.height), round(bottom * rgb.height)
            crop = rgb.crop((x0, y0, x1, y1))
            if crop.width and crop.height and not _blank(crop):
                crops.append(crop)
                places.append((n, w))
    vectors_NWE = np.full((len(images), len(WINDOWS), embedder.width), np.nan, dtype=np.float32)
    if crops:
        vectors_NWE[tuple(np.array(places).T)] = embedder.embed(crops)
    return vectors_NWE


def region_similarity(generation_WE: np.ndarray, candidates_NWE: np.ndarray) -> np.ndarray:
    """How alike a generation and each candidate are in their most alike window: [N], from `window_vectors`.

    The same window of both is compared, and only if neither is blank there; NaN where no window is left.
    """
    similarity_NW = np.einsum("we,nwe->nw", generation_WE, candidates_NWE)
    best_N = np.where(np.isnan(similarity_NW), -np.inf, similarity_NW).max(axis=1, initial=-np.inf)
    return np.where(np.isinf(best_N), np.nan, best_N)


def _blank(crop: Image.Image) -> bool:
    pixels_HWC = np.asarray(crop, dtype=np.float32) / 255
    return bool(pixels_HWC.std(axis=(0, 1)).max() < BLANK_DEVIATION)
