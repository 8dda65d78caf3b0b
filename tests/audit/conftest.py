"""The models of tests/data, and plain diffusers beside them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import audit
from tests.support.paths import DATA, TINY_MODELS
from tests.support.toy import MODEL

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the reference fixtures."""
    return DATA


@pytest.fixture(scope="session")
def sd1() -> audit.Model:
    return audit.load_model(DATA / "tiny-sd1")


@pytest.fixture(scope="session")
def sd2() -> audit.Model:
    return audit.load_model(DATA / "tiny-sd2")


@pytest.fixture(scope="session")
def small() -> audit.Model:
    """`toy-model`, with 4 cross-attention layers instead of the 16 of `sd1` and `sd2`. Tests must not change it."""
    return audit.load_model(MODEL)


@pytest.fixture(params=TINY_MODELS)
def tiny(request: pytest.FixtureRequest) -> audit.Model:
    """Both models in turn."""
    model: audit.Model = request.getfixturevalue({"tiny-sd1": "sd1", "tiny-sd2": "sd2"}[request.param])
    return model


@pytest.fixture(scope="session")
def expected() -> dict[str, list[dict[str, float | str | int]]]:
    content: dict[str, list[dict[str, float | str | int]]] = json.loads((DATA / "expected.json").read_text())
    return content


@pytest.fixture(scope="session")
def plain() -> StableDiffusionPipeline:
    """tiny-sd1 as diffusers runs it, in float32. Tests must not change it."""
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "tiny-sd1")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def loaded() -> StableDiffusionPipeline:
    """`toy-model` as diffusers loads it. Tests must not change it."""
    return StableDiffusionPipeline.from_pretrained(MODEL)


@pytest.fixture(scope="session")
def exact() -> StableDiffusionPipeline:
    """`toy-model` as diffusers runs it, in float64: to hold our float32 against. Tests must not change it."""
    pipe = StableDiffusionPipeline.from_pretrained(MODEL).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipeline(loaded: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A pipeline of `toy-model` that the test may change: its UNet and its scheduler are its own."""
    return own(loaded)


@pytest.fixture
def float64(exact: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The same in float64."""
    return own(exact)


def own(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    parts: dict[str, Any] = pipe.components | {
        "unet": copy.deepcopy(pipe.unet),
        "scheduler": DDIMScheduler.from_config(pipe.scheduler.config),
    }
    made = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made
