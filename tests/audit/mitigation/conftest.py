"""Give each test the smallest UNet that has every kind of cross-attention layer, and latents of 8 x 8."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import audit
from tests.support.toy import MODEL


@pytest.fixture(scope="session")
def model() -> audit.Model:
    """The toy model, at 16 x 16 pixels."""
    return audit.load_model(MODEL, resolution=16)


@pytest.fixture(scope="session")
def loaded() -> StableDiffusionPipeline:
    """The toy model as diffusers loads it."""
    return StableDiffusionPipeline.from_pretrained(MODEL)


@pytest.fixture(scope="session")
def loaded64() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(MODEL).to(torch.float64)


@pytest.fixture
def pipeline(loaded: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline that the test may change: its UNet and its scheduler are its own."""
    return own(loaded)


@pytest.fixture
def float64(loaded64: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same in float64."""
    return own(loaded64)


def own(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    parts: dict[str, Any] = pipe.components | {
        "unet": copy.deepcopy(pipe.unet),
        "scheduler": DDIMScheduler.from_config(pipe.scheduler.config),
    }
    made = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made
