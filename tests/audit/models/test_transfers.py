"""Copies between the host and a device give the same values, and do not change when the device goes on."""

from __future__ import annotations

import torch

from audit.models.transfers import to_device, to_host

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_values_survive_the_way_there_and_back() -> None:
    values = torch.randn(3, 5).T  # not contiguous
    there = to_device(values, DEVICE)
    arrived = to_host({"values": there, "twice": 2 * there}, DEVICE)
    there = to_device(there, DEVICE) * 0
    assert there.device.type == DEVICE.type
    assert torch.equal(torch.from_numpy(arrived()["values"]), values)
    assert torch.equal(torch.from_numpy(arrived()["twice"]), 2 * values)
