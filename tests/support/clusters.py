"""Cluster images by brute force, as a reference."""

from __future__ import annotations

import numpy as np


def unit_rows(seed: int, n: int, width: int = 3) -> np.ndarray:
    """Return random unit vectors: [n, width]."""
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def first_connected(edge: np.ndarray) -> np.ndarray:
    """Return the first image that each is connected with: labels spread along the edges until none changes."""
    first = np.arange(len(edge))
    while True:
        spread = np.where(edge, first, len(edge)).min(axis=1)
        if (spread == first).all():
            return first
        first = spread
