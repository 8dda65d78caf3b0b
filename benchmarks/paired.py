"""Measure speed in paired runs, because other load on the machine affects both runs of a pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

PAIRS = 20


def rounds(
    runs: Mapping[str, Callable[[], Any]], device: str, count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Measure several runs in turn. A first round warms up and is not counted; the order alternates.

    Args:
        runs: What to measure, by name.
        device: The device to synchronize, such as "cpu" or "cuda".
        count: The number of rounds.
        clock: Returns seconds; `time.process_time` leaves out what other processes take of the CPU.

    Returns:
        The seconds of each round, by name.
    """

    def timed(run: Callable[[], Any]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count):
        for name in list(runs) if number % 2 else reversed(list(runs)):
            seconds[name].append(timed(runs[name]))
    return seconds


def ratio(plain: Callable[[], Any], other: Callable[[], Any], device: str, pairs: int = PAIRS) -> str:
    """Measure the time of `other` relative to `plain`.

    Args:
        plain: The baseline.
        other: What is compared with it.
        device: The device to synchronize, such as "cpu" or "cuda".
        pairs: The number of pairs.

    Returns:
        The median and the quartiles of the ratios, as text.
    """
    seconds = rounds({"plain": plain, "other": other}, device, pairs)
    low, middle, high = np.quantile(np.divide(seconds["other"], seconds["plain"]), [0.25, 0.5, 0.75])
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"
