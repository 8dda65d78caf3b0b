from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
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


def followed(sizes: Sequence[float] | np.ndarray) -> list[float]:
    """What it gives for updates of these norms."""
    follower = UpdateNormProfile(torch.tensor([5]), len(sizes))
    for step, size in enumerate(sizes):
        follower.observe(step, TrajectoryStep(update_BCHW=torch.full((1, 1, 1, 1), size)))
    (found,) = follower.result()["update_norms"].tolist()
    return list(found)


def test_it_is_the_norm_of_the_update_of_each_step(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    expected = np.repeat(norms(reference, CAPTION, 2, 3), [4, 3, 3])
    np.testing.assert_allclose(measured(model, [CAPTION], 3)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        (13, [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13]),
        (10, list(range(11))),
        (50, list(range(0, 51, 5))),
    ],
)
def test_it_is_the_mean_of_each_tenth_of_the_run(steps: int, starts: list[int]) -> None:
    sizes = np.random.default_rng(0).uniform(1, 9, steps)
    means = [sizes[start:stop].mean() for start, stop in pairwise(starts)]
    assert followed(sizes) == pytest.approx(means, rel=1e-6)


def test_a_run_of_few_steps_repeats_them() -> None:
    assert followed([1.0, 2.0, 4.0]) == [1, 1, 1, 1, 2, 2, 2, 4, 4, 4]


def test_it_is_the_same_in_any_batch_and_order(small: audit.Model) -> None:
    captions = ["a dog", "", "a red boat", "word " * 200]
    together, apart = measured(small, captions, 3), measured(small, captions[::-1], 3, batch_size=3)[::-1]
    np.testing.assert_allclose(together, apart, rtol=2e-5)
    assert np.ptp(together, axis=0).min() > 1e-3


def test_its_features_are_logarithms_and_any_deviation_counts() -> None:
    found = features("update_norm_profile", {"update_norms": np.array([[1.0, np.e, 0.0]])})
    np.testing.assert_allclose(found, [[0.0, 1.0, np.log(1e-3)]])
    assert distance_kind("update_norm_profile") == "either"
