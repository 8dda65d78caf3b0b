from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import audit
from audit.errors import UsageError
from tests.support.sampler import encoded, sampled


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_it_is_the_definition_in_float64(pipe: Any, latents: Any, noise: Tensor, share: float) -> None:
    with audit.mitigated(pipe, audit.Dilute(share)):
        ours = latents(pipe, "a dog")
    prompt, empty = encoded(pipe, "a dog"), encoded(pipe, "")
    expected = sampled(pipe, share * prompt + (1 - share) * empty, noise, 3, 5.0)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-9, rtol=0)


def test_a_share_is_a_fraction() -> None:
    with pytest.raises(UsageError, match="share is 2"):
        audit.Dilute(2)
