from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import audit
from audit.errors import UsageError
from tests.support.sampler import encoded, sampled


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 2.5])
def test_it_is_another_guidance_scale_in_float64(pipe: Any, latents: Any, noise: Tensor, scale: float) -> None:
    with audit.mitigated(pipe, audit.WeakGuidance(scale)):
        ours = latents(pipe, "a dog")
    expected = sampled(pipe, encoded(pipe, "a dog"), noise, 3, scale)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-9, rtol=0)


def test_a_scale_is_finite() -> None:
    with pytest.raises(UsageError, match="scale is inf"):
        audit.WeakGuidance(float("inf"))
