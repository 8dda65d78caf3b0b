from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import audit
from audit.detectors import SCORES, distance_kind

CAPTION = "a serene beach at sunrise, 35mm"
STEPS = 2


def last_map(reference: Any, seed: int) -> np.ndarray:
    """The map of the last step of a guided run, pixel by pixel, in float64."""
    scheduler = type(reference.scheduler).from_config(reference.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x, e, empty = reference.noise(seed), reference.hidden(CAPTION), reference.hidden("")
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            before, outputs = x, (reference.output(x, t, empty), reference.output(x, t, e))
            x = scheduler.step(outputs[0] + 7.5 * (outputs[1] - outputs[0]), t, x).prev_sample
        difference = reference.eps(before, t, e) - reference.eps(before, t, empty)
    sigma = (1 - reference.alpha(t)) ** 0.5
    pixels = [[float(((difference[0, :, i, j] / sigma) ** 2).sum()) for j in range(16)] for i in range(16)]
    return np.array(pixels)


def test_it_is_the_squared_score_difference_of_the_last_step(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    expected = last_map(reference, 2)
    table = audit.generate(model, [CAPTION], [2], STEPS, 7.5, ["score_difference"], "latents")
    assert table["score_difference"][0].as_py() == pytest.approx(expected.mean(), rel=1e-3)
    found = np.asarray(Image.open(io.BytesIO(table["difference_region"][0].as_py())))
    assert found.shape == (16, 16)
    assert found.max() == 255
    np.testing.assert_allclose(found, 255 * expected / expected.max(), atol=0.6)


def test_a_caption_without_effect_has_an_empty_map(small: audit.Model) -> None:
    row = audit.generate(small, [""], steps=2, detectors=["score_difference"], output="latents").to_pylist()[0]
    assert row["status"] == "ok"
    assert row["score_difference"] == 0
    assert not np.asarray(Image.open(io.BytesIO(row["difference_region"]))).any()


def test_it_is_the_same_in_any_batch_and_order_and_beside_the_other_mask(small: audit.Model) -> None:
    captions = ["a dog", "a red boat", "word " * 200]
    both = ["bright_ending", "score_difference"]
    together = audit.generate(small, captions, steps=3, detectors=["score_difference"], output="latents")
    other = audit.generate(small, captions[::-1], steps=3, detectors=both, output="latents", batch_size=2)
    np.testing.assert_allclose(together["score_difference"], other["score_difference"].to_numpy()[::-1], rtol=1e-4)
    assert {"region", "difference_region"} <= set(other.column_names)


def test_large_scores_are_suspicious() -> None:
    assert "score_difference" in SCORES
    assert distance_kind("score_difference") == "larger"
