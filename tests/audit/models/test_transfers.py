"""Copies between host and device give the same values, and a GPU's queue is not waited for."""

from __future__ import annotations

import warnings

import pytest
import torch

import audit
from audit.models.transfers import to_device, to_host
from tests.support.toy import MODEL

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_values_survive_the_way_there_and_back(device: str) -> None:
    place = torch.device(device)
    values = torch.randn(3, 5).T  # not contiguous
    there = to_device(values, place)
    arrived = to_host({"values": there, "twice": 2 * there}, place)
    there = to_device(there, place) * 0
    assert there.device.type == device
    assert torch.equal(torch.from_numpy(arrived()["values"]), values)
    assert torch.equal(torch.from_numpy(arrived()["twice"]), 2 * values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_of_a_screen_do_not_wait_for_the_queue_of_a_gpu() -> None:
    model = audit.load_model(MODEL, device="cuda")

    def waits(batches: int) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                audit.screen(model, ["a dog", "a cat"] * batches, batch_size=2)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(each.message) for each in caught)

    waits(1)
    assert waits(2) == waits(8)
