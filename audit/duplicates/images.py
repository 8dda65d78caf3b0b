"""Find training images that are stored more than once: exactly by bytes, nearly by vectors.

See docs/explanation/confirmation.md.

Duplicates make a model memorize (Lee et al., arXiv 2107.06499; Carlini et al., arXiv 2301.13188). If their captions
vary, counting captions does not reveal them.

Shapes: Q images of a block, N images, E embedding width, M pairs, F images that are in any pair. Images are numbered
in the order of the dataset.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audit.duplicates.components import components

if TYPE_CHECKING:
    from PIL import Image

# A pair is a near-duplicate if it is as similar as the upper three quarters of edited copies are to their originals.
EDITED_QUANTILE = 0.25
# Lower limit: 90 % precision of SSCD on DISC (arXiv 2202.10261), a dataset of edited copies.
LEAST_ALIKE = 0.75
PIECE = 1024


def edited(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Edit an RGB image as the web does: crop up to 8 % per side, change brightness by up to 10 %, recompress.

    The copy has the size of the original.
    """
    from PIL import Image, ImageEnhance

    width, height = (round(side * rng.uniform(0.92, 1)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    content = io.BytesIO()
    brighter = ImageEnhance.Brightness(crop.resize(image.size, Image.Resampling.LANCZOS))
    brighter.enhance(rng.uniform(0.9, 1.1)).save(content, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(content).convert("RGB")


def duplicate_threshold(similarity_N: np.ndarray) -> float:
    """Compute the similarity at which two images are near duplicates; never below LEAST_ALIKE.

    Args:
        similarity_N: Similarities of edited copies to their originals.
    """
    return max(float(np.quantile(similarity_N, EDITED_QUANTILE)), LEAST_ALIKE)


def near_pairs(block_QE: np.ndarray, start: int, shards: Iterable[np.ndarray], threshold: float) -> np.ndarray:
    """Find near-duplicate pairs of a block's images and all images before them, by exact comparison.

    Args:
        block_QE: Vectors of the images `start` to `start + Q`.
        start: Number of the first image of the block.
        shards: Vectors [N, E] of all images in order; one shard is in memory at a time.
        threshold: Images with an inner product of at least this are near duplicates.

    Returns:
        Pairs [M, 2] of image numbers: a spanning forest of all near-duplicate pairs, which connects the same images.
    """
    block_QE = np.ascontiguousarray(block_QE, dtype=np.float32)
    number_Q = start + np.arange(len(block_QE))
    pairs_M2, first = np.empty((0, 2), np.int64), 0
    for vectors_NE in shards:
        for at in range(0, len(vectors_NE), PIECE):
            piece_NE = vectors_NE[at : at + PIECE].astype(np.float32)
            later = max(0, first + at - start)  # earlier images of the block precede the whole piece
            near_QN = block_QE[later:] @ piece_NE.T >= threshold
            q, n = np.divmod(np.flatnonzero(near_QN), len(piece_NE))
            number, n = number_Q[later:][q], n + first + at
            before = n < number
            if before.any():
                found_M2 = np.stack([n[before], number[before]], axis=1)
                pairs_M2 = forest(np.concatenate([pairs_M2, found_M2]))
        first += len(vectors_NE)
        if first >= start + len(block_QE):
            break
    return pairs_M2


def forest(pairs_M2: np.ndarray) -> np.ndarray:
    """Reduce pairs to (first image of the component, image); the result connects the same images as `pairs_M2`."""
    image_F, root_F = components(pairs_M2)
    return np.stack([root_F, image_F], axis=1)[root_F != image_F]


def same_bytes(sha256: pa.ChunkedArray, number_N: np.ndarray) -> np.ndarray:
    """Find images with the same bytes.

    Args:
        sha256: Hash of each image's bytes [N].
        number_N: Numbers of the images.

    Returns:
        Pairs [M, 2]: (first image with these bytes, image).
    """
    bytes_N = sha256.combine_chunks().dictionary_encode().indices.to_numpy()
    order_N = np.lexsort((number_N, bytes_N))
    bytes_N, number_N = bytes_N[order_N], number_N[order_N]
    _, first, inverse = np.unique(bytes_N, return_index=True, return_inverse=True)
    pairs_N2 = np.stack([number_N[first[inverse]], number_N], axis=1)
    return pairs_N2[pairs_N2[:, 0] != pairs_N2[:, 1]]


def clusters(pairs_M2: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group images that are connected by pairs; an image in no pair is a cluster of its own and is not returned.

    Returns:
        (images in any pair, ascending [F]; first image of each one's cluster [F]; size of that cluster [F]).
    """
    image_F, first_F = components(pairs_M2)
    _, inverse, count = np.unique(first_F, return_inverse=True, return_counts=True)
    return image_F, first_F, count[inverse]
