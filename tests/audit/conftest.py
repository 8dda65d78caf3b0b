"""The models of tests/data, and plain diffusers beside them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

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
    """tiny-sd1 as diffusers runs it, in float32. Tests that change it take `pipeline`."""
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "tiny-sd1")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipeline(plain: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A copy of `plain` that the test may change."""
    return copy.deepcopy(plain)


@pytest.fixture(scope="session")
def exact() -> StableDiffusionPipeline:
    """tiny-sd1 as diffusers runs it, in float64: to hold our float32 against."""
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "tiny-sd1").to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe
