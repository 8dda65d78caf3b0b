from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import audit
from audit.mitigation.run_bands import fit_run_bands
from tests.support.toy import MODEL

STEPS, GUIDANCE = 3, 5.0
Latents = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def double() -> audit.Model:
    """The toy model at 16 x 16 pixels, in float64."""
    return audit.load_model(MODEL, dtype=torch.float64, resolution=16)


@pytest.fixture(scope="session")
def make_pipe(double: audit.Model) -> Callable[[], Any]:
    """A function that returns a pipeline; all have the same networks."""

    def make() -> Any:
        pipeline = double.pipeline()
        scheduler = pipeline.scheduler  # it computes in the precision of these
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = (
            value.double() for value in (scheduler.alphas_cumprod, scheduler.final_alpha_cumprod)
        )
        return pipeline

    return make


@pytest.fixture
def pipe(make_pipe: Callable[[], Any]) -> Any:
    return make_pipe()


@pytest.fixture(scope="session")
def bands(double: audit.Model) -> audit.RunBands:
    captions = [f"a {look} {thing}" for look in ("red", "old", "wet", "tiny") for thing in ("dog", "cup", "sea")]
    return fit_run_bands(double, captions, STEPS, GUIDANCE, seed=100, batch_size=5)


@pytest.fixture(scope="session")
def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="session")
def latents(noise: torch.Tensor) -> Latents:
    def run(pipe: Any, prompt: Any = None, images: int = 1, **more: Any) -> np.ndarray:
        call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"} | more
        found: np.ndarray = pipe(prompt, latents=noise.expand(images, -1, -1, -1), **call).images.numpy()
        return found

    return run
