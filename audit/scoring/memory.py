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
    begin: Callable[[slice], Callable[[], T]],
    remember: Callable[[int], None],
    waits: Sequence[float] = (),
    most: int | None = None,
    halve: bool = True,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> list[T]:
    """Work on consecutive slices of at most `size` rows and return the results in order.

    Each slice is started before the result of the previous one is waited for, so that a GPU always has work. While a
    larger size is looked for, slices are timed one by one.

    If a slice runs out of memory, it and all later slices are halved. If a single row does, other processes may hold
    the memory, so it is tried again after a while.

    With `most`, the number of rows per slice is doubled after every two slices, until rows do not become faster, memory
    runs out or there are `most`. A size that made nothing faster is halved again. The second slice of each size is
    timed, because in the first one a GPU allocates memory and chooses or compiles its kernels.

    Args:
        rows: Number of rows.
        size: Rows per slice to begin with.
        begin: Starts the work on a slice and returns a function that waits for its result.
        remember: Called with the new size when it is found and whenever memory runs out.
        waits: Seconds to wait before each further try of a single row (`waits_on`).
        most: Largest number of rows per slice, if a larger size than the first is looked for.
        halve: Whether to try smaller slices when memory runs out.
        sleep: Waits for a number of seconds.
        clock: Returns the time in seconds.

    Returns:
        The result of each slice, in order.

    Raises:
        RuntimeError | MemoryError: A single row does not fit in memory, or the work failed for another reason.
    """
    done: list[T] = []
    waiting: Callable[[], T] | None = None  # for the result of the previous slice, if it is not in `done` yet
    start, left, pace, warm = 0, list(waits), 0.0, False
    while start < rows:
        stop, begun = min(start + size, rows), clock()
        try:
            result = begin(slice(start, stop))
            if waiting is not None:
                done.append(waiting())
                waiting = None
            if most is None and stop < rows:
                waiting = result
            else:
                done.append(result())
            if most is not None and stop - start == size:
                if warm:
                    before, pace = pace, size / max(clock() - begun, 1e-9)
                    faster = pace > GAIN * before
                    if faster and 2 * size <= most:
                        size = 2 * size
                    else:
                        size, most = size if faster else size // 2, None
                        remember(size)
                warm = not warm
            start, left = stop, list(waits)
            continue
        except (RuntimeError, MemoryError) as error:
            if not halve or not out_of_memory(error) or (stop - start == 1 and not left):
                raise
        # Outside the `except` block, because the traceback keeps alive the tensors that did not fit.
        torch.cuda.empty_cache()
        if stop - start == 1:
            sleep(left.pop(0))
            continue
        size, most = (stop - start) // 2, None
        remember(size)
    return done


def at_once(work: Callable[[slice], T]) -> Callable[[slice], Callable[[], T]]:
    """Wrap a function that returns its result directly, for use as `begin` of `in_batches`."""

    def begin(at: slice) -> Callable[[], T]:
        result = work(at)
        return lambda: result

    return begin


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
