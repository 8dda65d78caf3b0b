"""Stable Diffusion runs as its own pipeline does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import audit
from tests.support.families import Conformance


class TestStableDiffusion(Conformance):
    @pytest.fixture(scope="class")
    def float64(self, data: Path) -> audit.Model:
        return audit.load_model(data / "toy-model", dtype=torch.float64)
