"""Batches as large as memory allows: an out-of-memory error halves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# What torch's allocator says, and oneDNN, which does not say why.
_ON_THE_CPU = ("DefaultCPUAllocator", "could not create a primitive")


def in_batches(rows: int, size: int, work: Callable[[slice], T], remember: Callable[[int], None]) -> list[T]:
    """`work` of consecutive slices of at most `size` rows, in order.

    Where one runs out of memory it is halved, and so are all after it; `remember` is told the new size. Raises the
    error where a single row does not fit.
    """
    done: list[T] = []
    start = 0
    while start < rows:
        stop = min(start + size, rows)
        try:
            done.append(work(slice(start, stop)))
            start = stop
            continue
        except (RuntimeError, MemoryError) as error:
            if stop - start == 1 or not out_of_memory(error):
                raise
        # Out of the `except`, whose traceback holds on to what did not fit.
        torch.cuda.empty_cache()
        size = (stop - start) // 2
        remember(size)
    return done


def out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, torch's allocator on the CPU, or Python has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _ON_THE_CPU)
