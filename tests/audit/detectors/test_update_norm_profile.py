from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import audit
from audit.detectors import distance_kind, features
from audit.detectors.detector import TrajectoryStep
from audit.detectors.update_norm_profile import UpdateNormProfile

CAPTION = "a serene beach at sunrise, 35mm"


def norms(reference: Any, caption: str, seed: int, steps: int) -> list[float]:
    """`||x_(i+1) - x_i||` of each step of a guided run, in float64."""
    scheduler = type(reference.scheduler).from_config(reference.scheduler.config)
    scheduler.set_timesteps(steps)
    x, e, empty = reference.noise(seed), reference.hidden(caption), reference.hidden("")
    found = []
    with torch.no_grad():
        for t in scheduler.timesteps:
            without, with_caption = reference.output(x, t, empty), reference.output(x, t, e)
            after = scheduler.step(without + 7.5 * (with_caption - without), t, x).prev_sample
            found.append(float((after - x).square().sum().sqrt()))
            x = after
    return found


def measured(model: audit.Model, captions: list[str], steps: int, **more: Any) -> np.ndarray:
    table = audit.generate(model, captions, [2], steps, 7.5, ["update_norm_profile"], "latents", **more)
    return np.array(table["update_norms"].to_pylist())


@pytest.mark.parametrize(("steps", "starts"), [(13, [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13]), (10, list(range(11)))])
def test_it_is_the_mean_norm_of_the_update_in_each_tenth(
    case: tuple[audit.Model, Any], steps: int, starts: list[int]
) -> None:
    model, reference = case
    expected = norms(reference, CAPTION, 2, steps)
    means = [np.mean(expected[start:stop]) for start, stop in zip(starts, starts[1:], strict=False)]
    np.testing.assert_allclose(measured(model, [CAPTION], steps)[0], means, rtol=1e-4)


def test_a_run_of_few_steps_repeats_them() -> None:
    follower = UpdateNormProfile(torch.tensor([5]), 3)
    for step, size in enumerate((1.0, 2.0, 4.0)):
        follower.observe(step, TrajectoryStep(update_BCHW=torch.full((1, 1, 1, 1), size)))
    assert follower.result()["update_norms"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 4, 4, 4]]


def test_it_is_the_same_in_any_batch_and_order(sd1: audit.Model) -> None:
    captions = ["a dog", "", "a red boat", "word " * 200]
    together, apart = measured(sd1, captions, 3), measured(sd1, captions[::-1], 3, batch_size=3)[::-1]
    np.testing.assert_allclose(together, apart, rtol=2e-5)
    assert np.ptp(together, axis=0).min() > 1e-3


def test_its_features_are_logarithms_and_any_deviation_counts() -> None:
    found = features("update_norm_profile", {"update_norms": np.array([[1.0, np.e, 0.0]])})
    np.testing.assert_allclose(found, [[0.0, 1.0, np.log(1e-3)]])
    assert distance_kind("update_norm_profile") == "either"
