from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.detectors.attention_profile import POSITION, features, measure
from audit.detectors.detector import Seen


def columns_of(attn_NLK: np.ndarray) -> dict[str, np.ndarray]:
    found = measure(Seen(torch.empty(0), attn_BLK={POSITION: torch.from_numpy(attn_NLK)}))
    return {name: value.numpy() for name, value in found.items()}


def test_features_are_the_logit_of_bos_and_the_entropy_of_the_rest_renormalised() -> None:
    attn_NLK = np.array([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]])
    expected = [np.log(0.7 / 0.3), 0.0, -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)), np.log(2)]
    np.testing.assert_allclose(features(columns_of(attn_NLK)), [expected], atol=1e-12)


def test_the_entropy_of_the_rest_does_not_know_how_much_bos_takes() -> None:
    rest_K = np.array([0.5, 0.3, 0.2])
    attn_NLK = np.array([[[bos, *(1 - bos) * rest_K]] for bos in (0.01, 0.5, 0.99)])
    found = features(columns_of(attn_NLK))
    assert np.ptp(found[:, 1]) < 1e-9 and np.ptp(found[:, 0]) > 9


@pytest.mark.parametrize("bos", [0.0, 1.0])
def test_they_are_finite_where_bos_takes_all_or_nothing(bos: float) -> None:
    attn_NLK = np.array([[[bos, 1 - bos, 0.0]]])
    assert np.isfinite(features(columns_of(attn_NLK))).all()
