"""The response to the caption at t = 501, against a plain loop in float64, and its one-sided calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch

import audit
from audit.calibration.calibration import in_fitting_half
from audit.defaults import DEFAULT_DETECTOR
from audit.duplicates.captions import caption_groups

CAPTION = "a serene beach at sunrise, 35mm"
CONTROL = [f"{a} {b} {c}" for a in ("red", "old", "tiny", "wet") for b in ("dog", "ship") for c in "abcdefghijkl"]


def test_it_is_the_log_response_on_the_initial_noise_in_the_middle_of_the_schedule(
    case: tuple[audit.Model, Any],
) -> None:
    model, reference = case
    x, t = reference.noise(5), reference.scheduler.timesteps[24].item()
    with torch.no_grad():
        without = reference.eps(x, t, reference.hidden(""))
        response = reference.eps(x, t, reference.hidden(CAPTION)) - without
    expected = math.log(max(float(response.norm()), 1e-3 * float(without.norm())))
    [found] = audit.screen(model, [CAPTION], [5], ["caption_response"])["caption_response"].to_pylist()
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_empty_caption_has_the_smallest_response(small: audit.Model) -> None:
    empty, other = audit.screen(small, ["", CAPTION], detectors=["caption_response"])["caption_response"].to_pylist()
    assert math.isfinite(empty)
    assert empty < other


def test_it_is_the_same_in_any_batch_and_order(check_rows: Callable[[str], None]) -> None:
    check_rows("caption_response")


def test_it_takes_one_forward_per_caption_and_one_without_caption(small: audit.Model) -> None:
    forwards: list[tuple[int, int]] = []
    handle = small.unet.register_forward_pre_hook(lambda _, inputs: forwards.append((int(inputs[1]), len(inputs[0]))))
    audit.screen(small, ["a dog", "a red boat", "x"], detectors=["caption_response"])
    handle.remove()
    assert forwards == [(501, 1), (501, 3)]


def test_it_is_the_fifth_value_of_the_noise_profile(small: audit.Model) -> None:
    alone = audit.screen(small, [CAPTION], detectors=["caption_response"]).to_pylist()[0]
    both = audit.screen(small, [CAPTION], detectors=["caption_response", "noise_profile"]).to_pylist()[0]
    assert alone["caption_response"] == both["caption_response"] == both["noise_response"][4]


@pytest.fixture(scope="module")
def control(small: audit.Model) -> pa.Table:
    """A screen without a choice of detectors."""
    return audit.screen(small, CONTROL, batch_size=96, resolution=16)


def test_by_default_it_is_measured_and_calibrated(control: pa.Table) -> None:
    assert DEFAULT_DETECTOR == "caption_response"
    assert "caption_response" in control.column_names
    assert audit.calibrate(control).detector == "caption_response"


def test_a_score_is_one_sided_a_robust_z_score_against_control_captions(small: audit.Model, control: pa.Table) -> None:
    new = audit.screen(small, ["a boat", "x y z", CAPTION], resolution=16)
    calibration = audit.calibrate(control)
    halves = [in_fitting_half(group) for group in caption_groups(CONTROL)]
    values = control["caption_response"].to_pylist()
    fitting = [value for value, fits in zip(values, halves, strict=True) if fits]
    median = statistics.median(fitting)
    scale = 1.4826 * statistics.median(abs(value - median) for value in fitting)
    _, (found,) = calibration.distances(new)
    assert found.tolist() == pytest.approx([(x - median) / scale for x in new["caption_response"].to_pylist()])
    # A response far below that of control captions is not suspicious, one far above is.
    at = new.column_names.index("caption_response")
    moved = [new.set_column(at, "caption_response", [[median + k * scale] * 3]) for k in (-50, 50)]
    low, high = (calibration.score(table)["p_unseen"][0].as_py() for table in moved)
    assert (low, high) == (1.0, pytest.approx(1 / (1 + halves.count(False))))
