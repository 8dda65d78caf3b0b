"""Speed as ratios of paired runs: what a machine does beside it touches both of a pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

PAIRS = 20


def ratio(plain: Callable[[], Any], other: Callable[[], Any], device: str, pairs: int = PAIRS) -> str:
    """Median, and quartiles, of other's time over plain's; each pair runs in turn, in an order that alternates."""

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
