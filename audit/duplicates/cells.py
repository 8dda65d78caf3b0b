"""Find near-duplicate images without comparing all pairs: compare, exactly, only images in the same cell.

Cells are those of spherical k-means (Dhillon & Modha, Machine Learning 42, 2001). Each image is assigned to the few
nearest cells, so that fewer pairs on the border between two cells are missed (as in SPANN, arXiv 2111.08566). The
fraction of missed pairs is measured, not assumed.

Shapes: N images, S sampled images, E embedding width, K cells, L cells per image, M pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from audit.duplicates.captions import mixed
from audit.duplicates.images import forest, near_pairs

# Cells per image. On 100,000 images, 2 miss one pair in six, 3 one in thirteen, 4 one in thirty (docs/evidence.md).
EACH = 4
# Factor by which uneven cells cost more comparisons than cells of equal size (`python -m benchmarks.clusters`).
UNEVEN = 2
# Largest number of cells, rounds of k-means, and images per cell to learn the cells from.
MOST_CELLS, ROUNDS, PER_CELL = 1 << 15, 5, 32
# Images per cell compared in one block, and predecessors of the block per chunk.
BLOCK, PIECE = 8192, 256
# Number of images, approximately, whose pairs are found exactly in order to measure what is missed.
SCANNED = 1024


def cells_for(images: int) -> int:
    """Choose the number of cells for a number of images.

    Assigning N images costs N K inner products; comparing images within cells of equal size costs (L N)^2 / 2 K. The
    sum is least at K = L (N / 2)^0.5.
    """
    return max(1, min(round(EACH * (images / 2) ** 0.5), images // PER_CELL, MOST_CELLS))


def products(images: int) -> int:
    """Count all inner products: to learn the cells, to assign and compare images, and to measure what is missed."""
    count = cells_for(images)
    learning = ROUNDS * min(PER_CELL * count, images) * count
    compared = UNEVEN * (min(EACH, count) * images) ** 2 // (2 * count)
    return learning + images * (count + min(SCANNED, images)) + compared


def drawn(number_N: np.ndarray, images: int, wanted: int, seed: int) -> np.ndarray:
    """Draw a sample of about `wanted` images: [N] bool.

    Whether an image is drawn depends only on its number and the seed, not on how the images are split. The first of
    all images is always drawn, so that the sample is not empty.

    Args:
        number_N: Numbers of the images.
        images: Number of all images.
        wanted: Expected sample size.
        seed: Seed of the draw.

    Returns:
        Which images are in the sample: [N] bool.
    """
    key = mixed(np.array([seed % (1 << 64)], np.uint64))
    uniform_N = (mixed(number_N.astype(np.uint64) ^ key) >> np.uint64(11)) * 2.0**-53
    found_N: np.ndarray = (uniform_N < wanted / images) | (number_N == 0)
    return found_N


def learned(vectors_SE: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Learn the centres [K, E] of the given number of cells by k-means; fewer if the sample is smaller.

    Args:
        vectors_SE: Vectors of the sampled images.
        count: Number of cells.
        seed: Seed of k-means.

    Returns:
        The centres: [K, E], float32, of length 1.
    """
    import faiss

    count = min(count, len(vectors_SE))
    options = {"niter": ROUNDS, "seed": seed % (1 << 31), "min_points_per_centroid": 1, "spherical": True}
    kmeans = faiss.Kmeans(vectors_SE.shape[1], count, **options)
    kmeans.train(np.ascontiguousarray(vectors_SE, np.float32))
    return np.asarray(kmeans.centroids)


def assigned(vectors_NE: np.ndarray, centres_KE: np.ndarray, each: int) -> np.ndarray:
    """Assign each image to its nearest cells.

    Args:
        vectors_NE: Vectors of the images.
        centres_KE: Centres of the cells.
        each: Number of cells per image.

    Returns:
        Cell numbers [N, L].
    """
    import faiss

    vectors_NE = np.ascontiguousarray(vectors_NE, np.float32)
    cell_NL: np.ndarray = faiss.knn(vectors_NE, centres_KE, min(each, len(centres_KE)), faiss.METRIC_INNER_PRODUCT)[1]
    return cell_NL.astype(np.int32)


def near_in_cells(cell_N: np.ndarray, number_N: np.ndarray, vectors_NE: np.ndarray, threshold: float) -> np.ndarray:
    """Find near-duplicate pairs among the images of each cell.

    Args:
        cell_N: Cell of each image; an image in several cells has several entries.
        number_N: Number of each image.
        vectors_NE: Vector of each image. May be memory-mapped: only a block and a chunk of a cell are read at a time.
        threshold: Images with an inner product of at least this are near duplicates.

    Returns:
        Pairs [M, 2] of image numbers that connect the same images as all near-duplicate pairs do.
    """
    order = np.lexsort((number_N, cell_N))
    found = [np.empty((0, 2), np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(cell_N[order])) + 1):
        for start in range(0, len(members), BLOCK):
            block = members[start : start + BLOCK]
            before = _pieces(vectors_NE, members[: start + len(block)])
            found.append(number_N[members[near_pairs(vectors_NE[block], start, before, threshold)]])
    return forest(np.concatenate(found))


def _pieces(vectors_NE: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    return (vectors_NE[members[at : at + PIECE]] for at in range(0, len(members), PIECE))
