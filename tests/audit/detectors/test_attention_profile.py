from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.detectors.attention_profile import POSITION, features, measure
from audit.detectors.detector import Seen


def columns_of(attn_NLK: np.ndarray) -> dict[str, np.ndarray]:
    found = measure(Seen(torch.empty(0), attn_BLK={POSITION: torch.from_numpy(attn_NLK)}))
    return {name: value.numpy() for name, value in found.items()}


def test_features_are_the_logits_of_bos_alone() -> None:
    attn_NLK = np.array([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]], [[0.7, 0.3, 0.0], [0.5, 0.5, 0.0]]])
    np.testing.assert_allclose(features(columns_of(attn_NLK)), [[np.log(0.7 / 0.3), 0.0]] * 2, atol=1e-12)


@pytest.mark.parametrize("bos", [0.0, 1.0])
def test_they_are_finite_where_bos_takes_all_or_nothing(bos: float) -> None:
    attn_NLK = np.array([[[bos, 1 - bos, 0.0]]])
    assert np.isfinite(features(columns_of(attn_NLK))).all()
