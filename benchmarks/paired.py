"""Measure speed as ratios of paired runs, because other load on the machine affects both runs of a pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

PAIRS = 20


def ratio(plain: Callable[[], Any], other: Callable[[], Any], device: str, pairs: int = PAIRS) -> str:
    """Measure the time of `other` relative to `plain`. The order within the pairs alternates.

    Args:
        plain: The baseline.
        other: What is compared with it.
        device: The device to synchronize, such as "cpu" or "cuda".
        pairs: The number of pairs.

    Returns:
        The median and the quartiles of the ratios, as text.
    """

    def timed(run: Callable[[], Any]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for run in (plain, other):
        run()
    ratios = []
    for pair in range(pairs):
        first, second = (plain, other) if pair % 2 else (other, plain)
        times = {run: timed(run) for run in (first, second)}
        ratios.append(times[other] / times[plain])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"
