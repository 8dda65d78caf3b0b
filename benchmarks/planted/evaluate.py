"""Decide by pixels alone, without a detector or embedder, whether the planted model reproduces its images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def reproduced(generation: np.ndarray, own: int, images_NHWC: np.ndarray) -> bool:
    """Check whether a generation reproduces an image (L2 distance of pixels).

    Args:
        generation: The pixels of the generated image [H, W, 3].
        own: The index of the image.
        images_NHWC: The pixels of all distinct images.

    Returns:
        True if the image is the nearest one and at most half as far away as the nearest other image.
    """
    distance_N = np.sqrt(np.square(images_NHWC - generation).reshape(len(images_NHWC), -1).sum(1))
    others = np.delete(distance_N, own)
    return bool(distance_N[own] < others.min() and distance_N[own] <= 0.5 * others.min())


def decoded(image: bytes) -> np.ndarray:
    """Return the pixels of an image file, 0 to 1, as [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float32) / 255


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """Return the pixels of all images of a planted dataset by key, those that are held out included."""
    found = {}
    for file in sorted(folder.glob("images/*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[Path(member.name).stem] = decoded(content.read())
    return found


def training_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Return the pixels of the training images of a planted dataset by key."""
    trained = set(pq.read_table(folder / "labels.parquet", columns=["image_key"])["image_key"].to_pylist())
    return {key: pixels for key, pixels in pictures(folder).items() if key in trained}


def shares(
    table: pa.Table, labels: dict[str, str], own: dict[str, int], images_NHWC: np.ndarray
) -> dict[str, tuple[int, int]]:
    """Count the reproduced captions for each label.

    Args:
        table: Generations with `caption` and `image`.
        labels: The label of each caption.
        own: The index of each caption's own image.
        images_NHWC: The pixels of all distinct images.

    Returns:
        For each label, the number of captions that a majority of seeds reproduces, and the number of captions.
    """
    hits: dict[str, list[bool]] = {}
    for caption, image in zip(table["caption"].to_pylist(), table["image"].to_pylist(), strict=True):
        hits.setdefault(caption, []).append(reproduced(decoded(image), own[caption], images_NHWC))
    counts: dict[str, tuple[int, int]] = {}
    for caption, found in hits.items():
        k, n = counts.get(labels[caption], (0, 0))
        counts[labels[caption]] = (k + (sum(found) * 2 > len(found)), n + 1)
    return counts
