"""A screen needs no more memory for more captions, and workers share the weights that they load."""

from __future__ import annotations

import sys

import pytest
import torch

import audit
from benchmarks import memory
from tests.support.toy import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_a_screen_of_several_shards_needs_no_more_memory_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARD", 48)
    found = [rss for _, rss in memory.screened(audit.load_model(MODEL), 8 * memory.SHARD)]
    assert len(found) == 8
    assert found[-1] - found[1] < 16  # MiB


def test_the_weights_of_a_model_are_pages_of_its_files_that_other_processes_share() -> None:
    model = audit.load_model(MODEL)
    with torch.inference_mode():
        model.encode(["a caption"])
    for file in MODEL.rglob("*.safetensors"):
        mapped = memory.mapping(file)
        assert mapped["Rss"] >= 0.9 * file.stat().st_size / 2**20
        assert mapped["Private_Dirty"] == 0
