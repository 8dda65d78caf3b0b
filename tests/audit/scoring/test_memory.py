"""Batches grow while rows become faster and are halved where memory ends, which is remembered; given sizes stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import audit
from audit.scoring.memory import MOST, PATIENCE, at_once, in_batches, most_rows, out_of_memory, waits_on
from tests.support.toy import MODEL


@given(st.integers(0, 200), st.integers(1, 64), st.integers(1, 64))
def test_every_row_is_worked_once_in_order_and_no_size_is_tried_again(rows: int, size: int, fits: int) -> None:
    failed: list[int] = []

    def work(at: slice) -> list[int]:
        found = list(range(rows)[at])
        assert len(found) < min(failed, default=1000)
        if len(found) > fits:
            failed.append(len(found))
            raise torch.OutOfMemoryError("no room")
        return found

    told: list[int] = []
    assert [row for part in in_batches(rows, size, at_once(work), told.append) for row in part] == list(range(rows))
    assert len(told) == len(failed) <= 6
    assert all(new == old // 2 for new, old in zip(told, failed, strict=True))


@given(st.integers(0, 40), st.integers(1, 8), st.integers(1, 8))
def test_a_slice_is_begun_before_the_result_of_the_one_before_is_waited_for(rows: int, size: int, fits: int) -> None:
    told: list[tuple[str, slice]] = []

    def begin(at: slice) -> Callable[[], slice]:
        if at.stop - at.start > fits:
            raise torch.OutOfMemoryError("no room")
        told.append(("begun", at))

        def finish() -> slice:
            told.append(("finished", at))
            return at

        return finish

    slices = in_batches(rows, size, begin, lambda size: None)
    assert [row for at in slices for row in range(rows)[at]] == list(range(rows))
    begun = [("begun", at) for at in slices]
    finished = [("finished", at) for at in slices]
    assert told == [
        *begun[:1],
        *(each for pair in zip(begun[1:], finished, strict=False) for each in pair),
        *finished[-1:],
    ]


def test_a_result_that_runs_out_of_memory_is_waited_for_again_and_no_row_is_lost() -> None:
    broken = [slice(0, 4), slice(8, 10)]

    def begin(at: slice) -> Callable[[], slice]:
        def finish() -> slice:
            if at in broken:
                broken.remove(at)
                raise torch.OutOfMemoryError("no room")
            return at

        return finish

    assert in_batches(10, 4, begin, lambda size: None) == [
        slice(0, 4),
        slice(4, 6),
        slice(6, 8),
        slice(8, 9),
        slice(9, 10),
    ]


def test_a_given_size_is_not_halved() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(8, 8, at_once(Device(full=8, fits=4).work), lambda size: None, halve=False)


class Device:
    """A clock, and work that takes as long as on a device with overhead, `full` rows at a time and room for `fits`.

    The first slice of a size takes much longer.
    """

    def __init__(self, full: int, fits: int, overhead: float = 1.0) -> None:
        self.time, self.sizes = 0.0, list[int]()
        self._full, self._fits, self._overhead = full, fits, overhead

    def clock(self) -> float:
        return self.time

    def work(self, at: slice) -> list[int]:
        size = at.stop - at.start
        self.sizes.append(size)
        if size > self._fits:
            raise torch.OutOfMemoryError("no room")
        first = 100.0 if self.sizes.count(size) == 1 else 0.0
        self.time += first + self._overhead + max(size, self._full) / self._full
        return list(range(at.start, at.stop))


@pytest.mark.parametrize(
    ("device", "sizes", "found"),
    [
        (Device(full=256, fits=10_000, overhead=0), [64, 64, 128, 128, 256, 256, 512, 512, 256, 256], 256),
        (Device(full=10_000, fits=300), [64, 64, 128, 128, 256, 256, 512, 256, 256, 256], 256),
        (Device(full=10_000, fits=10_000), [64, 64, 128, 128, 256, 256, 512, 512, 512], 512),
        (Device(full=1, fits=10_000, overhead=0), [64, 64, 128, 128, *[64] * 20], 64),
    ],
    ids=["a full device", "no more room", "the largest size", "no gain"],
)
def test_batches_grow_as_long_as_rows_become_faster(device: Device, sizes: list[int], found: int) -> None:
    told: list[int] = []
    rows = sum(size for size in sizes if size <= device._fits)
    parts = in_batches(rows, 64, at_once(device.work), told.append, most=512, clock=device.clock)
    assert [row for part in parts for row in part] == list(range(rows))
    assert (device.sizes, told) == (sizes, [found])


def test_too_few_rows_to_compare_say_nothing() -> None:
    told: list[int] = []
    found = in_batches(228, 64, at_once(lambda at: at), told.append, most=512)
    assert found == [slice(0, 64), slice(64, 128), slice(128, 228)]
    assert told == []


def test_larger_batches_are_tried_on_a_gpu_only() -> None:
    assert (most_rows("cpu"), most_rows("cuda")) == (None, MOST)


def test_a_single_row_that_does_not_fit_and_every_other_error_are_raised() -> None:
    def work(at: slice) -> None:
        raise MemoryError if at.stop - at.start == 1 else torch.OutOfMemoryError("no room")

    with pytest.raises(MemoryError):
        in_batches(8, 8, at_once(work), lambda size: None)
    with pytest.raises(ZeroDivisionError):
        in_batches(8, 8, at_once(lambda at: 1 / 0), lambda size: None)


def test_a_single_row_waits_for_memory_that_another_process_holds() -> None:
    slept: list[float] = []

    def work(at: slice) -> slice:
        if at.start == 1 and len(slept) < 2:
            raise RuntimeError("CUDA error: out of memory")
        return at

    assert in_batches(3, 1, at_once(work), lambda size: None, (1.0, 2.0), sleep=slept.append) == [
        slice(0, 1),
        slice(1, 2),
        slice(2, 3),
    ]
    assert slept == [1.0, 2.0]
    slept.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        in_batches(3, 1, at_once(work), lambda size: None, (1.0,), sleep=lambda seconds: None)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
        "HIP out of memory. Tried to allocate 20.00 MiB.",
        "HIP error: out of memory",
        "MPS backend out of memory (MPS allocated: 18.08 GiB, other allocations: 80 KiB, max allowed: 18.13 GiB).",
    ],
)
def test_every_library_says_it_in_its_own_words(message: str) -> None:
    assert out_of_memory(RuntimeError(message))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_only_a_gpu_is_waited_for() -> None:
    assert waits_on(torch.device("cpu")) == ()
    assert waits_on(torch.device("cuda")) == PATIENCE


def test_on_a_machine_without_memory_the_same_scores_come_of_smaller_batches() -> None:
    model, captions = audit.load_model(MODEL), [f"caption {number}" for number in range(20)]
    call: dict[str, Any] = {"detectors": ["noise_magnitude", "attention_profile"], "resolution": 16}
    expected = audit.screen(model, captions, **call, batch_size=4)

    def crowded(_block: Any, inputs: Any) -> None:
        if len(inputs[0]) > 6:
            torch.empty(2**60, dtype=torch.uint8)  # more than any machine has: the allocator refuses

    model.unet.mid_block.register_forward_pre_hook(crowded)
    with pytest.raises(RuntimeError) as caught:
        audit.screen(model, captions, **call, batch_size=16)
    assert out_of_memory(caught.value)
    found = audit.screen(model, captions, **call)
    assert model.batch_sizes == {"screen at 8 x 8": 4}
    for name in ("noise_magnitude", "layer_entropy"):
        ours, theirs = (np.array(table[name].to_pylist()) for table in (found, expected))
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


def test_an_error_of_another_kind_is_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
