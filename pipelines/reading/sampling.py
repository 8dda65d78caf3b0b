"""Which rows `captions.sample` takes: one, at random, of each of N equal stretches of the data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audit.captions import mixed


@dataclass(frozen=True)
class Sample:
    """`size` of `total` rows. A row is taken or not by its number, the total and the seed alone, whoever asks."""

    size: int
    total: int
    seed: int

    def within(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The numbers among [start, stop) that are taken, in order. No more than these are held."""
        if stop <= start or not self.size:
            return np.zeros(0, np.int64)
        first, last = start * self.size // self.total, min(stop * self.size // self.total + 1, self.size)
        # Stretch k is [k total / size, (k + 1) total / size), in Python's whole numbers: size x total may pass 2^63.
        bounds = np.array([k * self.total // self.size for k in range(first, last + 1)], np.int64)
        length = (bounds[1:] - bounds[:-1]).astype(np.uint64)
        draw = mixed(np.arange(first, last, dtype=np.uint64) + mixed(np.array([self.seed], np.uint64)))
        taken = bounds[:-1] + (draw % length).astype(np.int64)
        return taken[(taken >= start) & (taken < stop)]
