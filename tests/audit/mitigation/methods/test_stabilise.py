from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import audit
from audit.errors import UsageError
from tests.support.sampler import encoded, sampled

PROMPT, STEPS, GUIDANCE = "a serene beach at sunrise", 3, 5.0


@pytest.mark.parametrize("tail", [0.0, 0.3, 0.49])
def test_it_is_the_definition_in_float64(
    pipe: Any, latents: Any, noise: Tensor, bands: audit.RunBands, tail: float
) -> None:
    def quantile(norms: Any, step: int, share: float) -> float:
        return float(np.quantile([run[step] for run in norms], share))

    def clamped(value: Tensor, norms: Any, step: int) -> Tensor:
        norm = float(value.square().sum().sqrt())
        low, high = quantile(norms, step, tail), quantile(norms, step, 1 - tail)
        return value * (min(max(norm, low), high) / norm)

    def clean(step: int, x0: Tensor) -> Tensor:
        return x0 * (quantile(bands.clean, step, 0.5) / x0.square().sum().sqrt())

    def after(step: int, before: Tensor, x: Tensor) -> Tensor:
        return clamped(before + clamped(x - before, bands.update, step), bands.latent, step)

    with audit.mitigated(pipe, audit.Stabilise(bands, tail)):
        ours = latents(pipe, PROMPT)
    expected = sampled(pipe, encoded(pipe, PROMPT), noise, STEPS, GUIDANCE, clean=clean, after=after)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ({"num_inference_steps": 5}, "fitted with timesteps"),
        ({"guidance_scale": 4.0}, "fitted with guidance_scale 5.0, but this call has 4.0"),
    ],
)
def test_bands_of_other_calls_are_refused(
    pipe: Any, latents: Any, bands: audit.RunBands, call: dict[str, Any], what: str
) -> None:
    with audit.mitigated(pipe, audit.Stabilise(bands)), pytest.raises(UsageError, match=what):
        latents(pipe, PROMPT, **call)


def test_bands_of_other_weights_are_refused(pipe: Any, bands: audit.RunBands) -> None:
    other = replace(bands, weights_sha256=(("unet", "0"),))
    with pytest.raises(UsageError, match="of other weights"):
        audit.mitigate_(pipe, audit.Stabilise(other))
    del pipe.audited
    with pytest.raises(UsageError, match="cannot be checked"):
        audit.mitigate_(pipe, audit.Stabilise(bands))


def test_a_tail_is_below_one_half(bands: audit.RunBands) -> None:
    with pytest.raises(UsageError, match=r"tail is 0\.5"):
        audit.Stabilise(bands, 0.5)
