"""Run batches as large as memory allows: halve them when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

# Messages of torch's CPU allocator and of oneDNN, which does not give the reason; then those of GPUs, of which only
# torch's own allocator raises torch.OutOfMemoryError.
_MESSAGES = (
    "DefaultCPUAllocator",
    "could not create a primitive",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "HIP error: out of memory",
    "HIP out of memory",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "miopenStatusAllocFailed",
    "MPS backend out of memory",
)
# Seconds to wait, one after the other, for a GPU that other processes have filled.
PATIENCE = (1.0, 2.0, 4.0, 8.0, 16.0)


def in_batches(
    rows: int,
    size: int,
    work: Callable[[slice], T],
    remember: Callable[[int], None],
    waits: Sequence[float] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> list[T]:
    """Apply `work` to consecutive slices of at most `size` rows and return the results in order.

    If a slice runs out of memory, it and all later slices are halved. If a single row does, other processes may hold
    the memory, so it is tried again after a while.

    Args:
        rows: Number of rows.
        size: Rows per slice to begin with.
        work: Called with each slice.
        remember: Called with the new size whenever it is halved.
        waits: Seconds to wait before each further try of a single row (`waits_on`).
        sleep: Waits for a number of seconds.

    Returns:
        The result of each slice, in order.

    Raises:
        RuntimeError | MemoryError: A single row does not fit in memory, or `work` failed for another reason.
    """
    done: list[T] = []
    start, left = 0, list(waits)
    while start < rows:
        stop = min(start + size, rows)
        try:
            done.append(work(slice(start, stop)))
            start, left = stop, list(waits)
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or (stop - start == 1 and not left):
                raise
        # Outside the `except` block, because the traceback keeps alive the tensors that did not fit.
        torch.cuda.empty_cache()
        if stop - start == 1:
            sleep(left.pop(0))
            continue
        size = (stop - start) // 2
        remember(size)
    return done


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that an accelerator, torch's CPU allocator or Python ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _MESSAGES)


def waits_on(device: torch.device) -> Sequence[float]:
    """Return how long to wait for memory on a device, in seconds per try: GPUs may be shared with other processes."""
    return () if device.type == "cpu" else PATIENCE
