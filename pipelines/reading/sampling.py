"""Draw a sample of numbered rows (those that a random permutation puts first), or take evenly spaced items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from audit.duplicates.captions import Words, mixed

T = TypeVar("T")
_ROUNDS = 6


@dataclass(frozen=True)
class Sample:
    """A sample of `size` of `total` rows.

    Whether it contains a row depends only on the row's number, `size`, `total` and `seed`, not on which process asks.

    Attributes:
        size: Number of rows in the sample.
        total: Number of all rows.
        seed: Seed of the permutation.
    """

    size: int
    total: int
    seed: int

    def within(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the row numbers in [start, stop) that are in the sample, in order, without looking at other rows."""
        number_N = np.arange(start, stop, dtype=np.uint64)
        return number_N[self._permuted(number_N) < np.uint64(self.size)].astype(np.int64)

    def _permuted(self, number_N: Words) -> Words:
        """Permute numbers with a Feistel network, repeated until they are below `total` (Black & Rogaway 2002)."""
        half = np.uint64(max(1, -(-(self.total - 1).bit_length() // 2)))
        mask = (np.uint64(1) << half) - np.uint64(1)
        rounds: Words = np.arange(_ROUNDS, dtype=np.uint64)
        keys = mixed(rounds + mixed(np.array([self.seed], np.uint64)))
        found, outside = number_N.copy(), np.arange(len(number_N))
        while len(outside):
            left, right = found[outside] >> half, found[outside] & mask
            for key in keys:
                left, right = right, left ^ (mixed(right ^ key) & mask)
            found[outside] = left << half | right
            outside = outside[found[outside] >= np.uint64(self.total)]
        return found


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced and in order."""
    return [items[at * len(items) // most] for at in range(most)] if len(items) > most else list(items)
