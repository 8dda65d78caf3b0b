"""Find the batch size: double it while that makes rows faster, and halve it when memory runs out."""

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
MOST = 1024  # rows
GAIN = 1.05  # how many times faster a row of a batch twice as large must be


def in_batches(
    rows: int,
    size: int,
    work: Callable[[slice], T],
    remember: Callable[[int], None],
    waits: Sequence[float] = (),
    most: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> list[T]:
    """Apply `work` to consecutive slices of at most `size` rows and return the results in order.

    If a slice runs out of memory, it and all later slices are halved. If a single row does, other processes may hold
    the memory, so it is tried again after a while.

    With `most`, each slice has twice as many rows as the one before, until rows do not become faster, memory runs out
    or there are `most`. A size that made nothing faster is halved again.

    Args:
        rows: Number of rows.
        size: Rows per slice to begin with.
        work: Called with each slice.
        remember: Called with the new size when it is found and whenever memory runs out.
        waits: Seconds to wait before each further try of a single row (`waits_on`).
        most: Largest number of rows per slice, if a larger size than the first is looked for.
        sleep: Waits for a number of seconds.
        clock: Returns the time in seconds.

    Returns:
        The result of each slice, in order.

    Raises:
        RuntimeError | MemoryError: A single row does not fit in memory, or `work` failed for another reason.
    """
    done: list[T] = []
    start, left, pace = 0, list(waits), 0.0
    while start < rows:
        stop, begun = min(start + size, rows), clock()
        try:
            done.append(work(slice(start, stop)))
            if most is not None and stop - start == size:
                before, pace = pace, size / max(clock() - begun, 1e-9)
                faster = pace > GAIN * before
                if faster and 2 * size <= most:
                    size = 2 * size
                else:
                    size, most = size if faster else size // 2, None
                    remember(size)
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
        size, most = (stop - start) // 2, None
        remember(size)
    return done


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that an accelerator, torch's CPU allocator or Python ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _MESSAGES)


def usual_batch(device: str) -> int:
    """Return the number of rows per forward to begin with on a type of device."""
    return 16 if device == "cpu" else 64


def most_rows(device: str) -> int | None:
    """Return the number of rows up to which larger batches are tried on a type of device, or None for none.

    None are tried on the CPU. There, batches of 64 make rows of tiny models a quarter to a third faster than batches
    of 16, and where memory is short the operating system may end the process instead of raising an error.
    """
    return None if device == "cpu" else MOST


def waits_on(device: torch.device) -> Sequence[float]:
    """Return how long to wait for memory on a device, in seconds per try: GPUs may be shared with other processes."""
    return () if device.type == "cpu" else PATIENCE
