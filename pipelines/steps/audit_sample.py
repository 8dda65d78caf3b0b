"""Draw the audit sample: captions outside the budget, at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def draw(by_budget: npt.NDArray[np.int64], total: int, size: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw captions outside the budget at random, without replacement.

    Args:
        by_budget: Numbers of the captions of the budget.
        total: Number of captions.
        size: Size of the sample; all captions outside the budget if there are fewer.
        seed: Seed of the draw.

    Returns:
        The numbers of the sampled captions, in the order in which they were drawn.
    """
    rest = total - len(by_budget)
    place = np.random.default_rng(seed).choice(rest, min(size, rest), replace=False)
    # The k-th caption of the budget, in order, comes after (its number - k) captions outside it.
    before = np.sort(by_budget) - np.arange(len(by_budget))
    return np.asarray(place + np.searchsorted(before, place, side="right"))
