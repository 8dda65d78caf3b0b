"""Measure the peak memory and the CPU seconds of this process and all its descendants."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


@dataclass
class Spent:
    """Hold the peak of the total memory in bytes (PSS, which splits shared pages) and the CPU seconds per process."""

    memory: int = 0
    seconds: dict[int, float] = field(default_factory=dict)

    def cpu(self) -> float:
        """Return the CPU seconds of all processes."""
        return sum(self.seconds.values())

    def look(self) -> None:
        """Update the figures from the processes that run now."""
        here, total = psutil.Process(), 0
        for process in [here, *here.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
                self.seconds[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        self.memory = max(self.memory, total)


@contextmanager
def watched() -> Iterator[Spent]:
    """Measure what the body of the `with` statement uses, sampling every half second."""
    spent, ended = Spent(), threading.Event()
    before = sum(psutil.Process().cpu_times()[:2])

    def watch() -> None:
        while not ended.wait(0.5):
            spent.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield spent
    finally:
        ended.set()
        watcher.join()
        spent.seconds[os.getpid()] = sum(psutil.Process().cpu_times()[:2]) - before
