"""The one-sided scores of the response to the caption over eight timesteps: alone, and with attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import audit
from audit.detectors import COMBINED

CAPTION = "a serene beach at sunrise, 35mm"
CONTROL = [f"{a} {b} {c}" for a in ("red", "old", "tiny", "wet") for b in ("dog", "ship") for c in "abcdefghijkl"]


@pytest.fixture(scope="module")
def tables(small: audit.Model) -> Any:
    """A screen of control captions and one of others, on small images."""
    others = ["a boat", "x y z", CAPTION]
    call: dict[str, Any] = {"seeds": [0], "detectors": ["response_and_attention"], "batch_size": 100, "resolution": 8}
    return [audit.screen(small, captions, **call) for captions in (CONTROL, others)]


def test_the_mean_costs_nothing_beside_the_profile(small: audit.Model) -> None:
    one, both = (
        audit.screen(small, ["a dog"], detectors=names)
        for names in (["noise_profile"], ["noise_profile", "noise_response_mean"])
    )
    assert one.equals(both, check_metadata=True)


def test_the_distance_is_the_mean_robust_z_score(tables: Any) -> None:
    control, new = tables
    calibration = audit.calibrate(control, "noise_response_mean")
    _, (found,) = calibration.distances(new)
    distance = calibration.parts[0].distance
    for row, value in zip(new["noise_response"].to_pylist(), found, strict=True):
        z = [(x - m) * s for x, m, s in zip(row, distance.median, distance.inverse_scale, strict=True)]  # type: ignore[union-attr]
        assert value == pytest.approx(sum(z) / len(z))


def test_the_combined_score_is_the_larger_of_both_after_calibration(tables: Any) -> None:
    control, new = tables
    parts = [audit.calibrate(control, name).score(new) for name in ("attention_profile", "noise_response_mean")]
    both = audit.calibrate(control, "response_and_attention").score(new)
    np.testing.assert_allclose(both["score"], np.maximum(*(part["score"].to_numpy() for part in parts)))
    least = np.minimum(*(part["p_unseen"].to_numpy() for part in parts))
    np.testing.assert_allclose(both["p_unseen"], np.minimum(1, 2 * least))
    assert COMBINED["response_and_attention"] == ("attention_profile", "noise_response_mean")


def test_a_calibration_of_the_mean_holds_for_one_version_of_the_column(tables: Any) -> None:
    calibration = audit.calibrate(tables[0], "noise_response_mean")
    assert calibration.context["version of noise_profile"] == 1
