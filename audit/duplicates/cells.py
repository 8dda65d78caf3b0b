"""Near duplicates without comparing every image with every other: only images of one list are compared, exactly.

Lists are the cells of spherical k-means (Dhillon & Modha, Machine Learning 42, 2001), and each image is in the few
that are nearest to it, so that fewer pairs on the border of two are missed (as SPANN does, arXiv 2111.08566). What is
missed is measured, not assumed.

Shapes: N images, S sampled images, E embedding width, K lists, L lists of each image, M pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from audit.duplicates.captions import mixed
from audit.duplicates.images import forest, near_pairs

# Lists of each image: of 100,000, 2 miss one pair in six, 3 one in thirteen, 4 one in thirty (docs/design.md, 8).
EACH = 4
# So many times more is compared than in lists of one size (`python -m benchmarks.clusters`).
UNEVEN = 2
# Lists at most, rounds of k-means, and images that a list is learned from.
MOST_LISTS, ROUNDS, FROM_A_LIST = 1 << 15, 5, 32
# Images of a list that are compared with all before them at once, and of those so many at a time.
BLOCK, PIECE = 8192, 256
# The pairs of about so many images are found exactly.
SCANNED = 1024


def lists_of(images: int) -> int:
    """How many lists there are for so many images.

    To assign them costs N K products, to compare inside of lists as large as each other (L N)^2 / 2 K: least in sum
    where K = L (N / 2)^0.5.
    """
    return max(1, min(round(EACH * (images / 2) ** 0.5), images // FROM_A_LIST, MOST_LISTS))


def products(images: int) -> int:
    """Inner products in all: to learn the lists, to assign and compare images, and to measure what is missed."""
    count = lists_of(images)
    learning = ROUNDS * min(FROM_A_LIST * count, images) * count
    compared = UNEVEN * (min(EACH, count) * images) ** 2 // (2 * count)
    return learning + images * (count + min(SCANNED, images)) + compared


def drawn(number_N: np.ndarray, images: int, wanted: int, seed: int) -> np.ndarray:
    """Which images are of a sample of about so many: [N] bool. It depends on their numbers, not on how they are cut.

    The first of all images always is, so that there is one.
    """
    key = mixed(np.array([seed % (1 << 64)], np.uint64))
    uniform_N = (mixed(number_N.astype(np.uint64) ^ key) >> np.uint64(11)) * 2.0**-53
    found_N: np.ndarray = (uniform_N < wanted / images) | (number_N == 0)
    return found_N


def learned(vectors_SE: np.ndarray, lists: int, seed: int) -> np.ndarray:
    """The centres [K, E] of that many lists, of fewer if the sample is smaller."""
    import faiss

    lists = min(lists, len(vectors_SE))
    options = {"niter": ROUNDS, "seed": seed % (1 << 31), "min_points_per_centroid": 1, "spherical": True}
    kmeans = faiss.Kmeans(vectors_SE.shape[1], lists, **options)
    kmeans.train(np.ascontiguousarray(vectors_SE, np.float32))
    return np.asarray(kmeans.centroids)


def assigned(vectors_NE: np.ndarray, centres_KE: np.ndarray, each: int) -> np.ndarray:
    """The lists [N, L] of each image: those of so many nearest centres."""
    import faiss

    vectors_NE = np.ascontiguousarray(vectors_NE, np.float32)
    lists_NL: np.ndarray = faiss.knn(vectors_NE, centres_KE, min(each, len(centres_KE)), faiss.METRIC_INNER_PRODUCT)[1]
    return lists_NL.astype(np.int32)


def near_in_lists(list_N: np.ndarray, number_N: np.ndarray, vectors_NE: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs [M, 2] of numbers that connect what the images of each list at or above `threshold` connect.

    `vectors_NE` may be a file mapped into memory: no more is taken of it at a time than a block and a piece of a list.
    """
    order = np.lexsort((number_N, list_N))
    found = [np.empty((0, 2), np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(list_N[order])) + 1):
        for start in range(0, len(members), BLOCK):
            block = members[start : start + BLOCK]
            before = _pieces(vectors_NE, members[: start + len(block)])
            found.append(number_N[members[near_pairs(vectors_NE[block], start, before, threshold)]])
    return forest(np.concatenate(found))


def _pieces(vectors_NE: np.ndarray, members: np.ndarray) -> Iterator[np.ndarray]:
    return (vectors_NE[members[at : at + PIECE]] for at in range(0, len(members), PIECE))
