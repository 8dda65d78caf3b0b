"""The one-sided scores of the response to the caption: over eight timesteps, over four, and with attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import audit
from audit.detectors import COMBINED
from audit.detectors.noise_response_middle import POSITIONS
from tests.support.toy import MODEL

CAPTION = "a serene beach at sunrise, 35mm"
CONTROL = [f"{a} {b} {c}" for a in ("red", "old", "tiny", "wet") for b in ("dog", "ship") for c in "abcdefghijkl"]


@pytest.fixture(scope="module")
def tables() -> Any:
    """A screen of control captions and one of others."""
    small = audit.load_model(MODEL)
    detectors = ["response_and_attention", "noise_response_middle"]
    return [audit.screen(small, captions, [0], detectors) for captions in (CONTROL, ["a boat", "x y z", CAPTION])]


def test_the_middle_is_the_log_response_at_four_timesteps(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    x, e, empty = reference.noise(5), reference.hidden(CAPTION), reference.hidden("")
    expected = []
    with torch.no_grad():
        for position in (12, 18, 24, 30):
            t = reference.scheduler.timesteps[position].item()
            without = reference.eps(x, t, empty)
            response = (reference.eps(x, t, e) - without).norm()
            expected.append(float(response.clamp(min=1e-3 * float(without.norm())).log()))
    found = audit.screen(model, [CAPTION], [5], ["noise_response_middle"])["noise_response_middle"][0].as_py()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_middle_runs_only_its_own_forwards(sd1: audit.Model) -> None:
    timesteps: list[int] = []
    handle = sd1.unet.register_forward_pre_hook(lambda _, inputs: timesteps.append(int(inputs[1])))
    audit.screen(sd1, ["a dog"], detectors=["noise_response_middle"])
    handle.remove()
    assert timesteps == 2 * [741, 621, 501, 381]
    assert len(POSITIONS) == 4


def test_the_mean_costs_nothing_beside_the_profile(sd1: audit.Model) -> None:
    one, both = (
        audit.screen(sd1, ["a dog"], detectors=names)
        for names in (["noise_profile"], ["noise_profile", "noise_response_mean"])
    )
    assert one.equals(both, check_metadata=True)


@pytest.mark.parametrize("detector", ["noise_response_mean", "noise_response_middle"])
def test_the_distance_is_the_mean_robust_z_score(detector: str, tables: Any) -> None:
    control, new = tables
    calibration = audit.calibrate(control, detector)
    _, (found,) = calibration.distances(new)
    column = "noise_response" if detector == "noise_response_mean" else detector
    distance = calibration.parts[0].distance
    for row, value in zip(new[column].to_pylist(), found, strict=True):
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
