"""Run batches as large as memory allows: halve them when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# Messages of torch's CPU allocator and of oneDNN, which does not give the reason.
_ON_THE_CPU = ("DefaultCPUAllocator", "could not create a primitive")


def in_batches(rows: int, size: int, work: Callable[[slice], T], remember: Callable[[int], None]) -> list[T]:
    """Apply `work` to consecutive slices of at most `size` rows and return the results in order.

    If a slice runs out of memory, it and all later slices are halved.

    Args:
        rows: Number of rows.
        size: Rows per slice to begin with.
        work: Called with each slice.
        remember: Called with the new size whenever it is halved.

    Returns:
        The result of each slice, in order.

    Raises:
        RuntimeError | MemoryError: A single row does not fit in memory, or `work` failed for another reason.
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
        # Outside the `except` block, because the traceback keeps alive the tensors that did not fit.
        torch.cuda.empty_cache()
        size = (stop - start) // 2
        remember(size)
    return done


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that an accelerator, torch's CPU allocator or Python ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _ON_THE_CPU)
