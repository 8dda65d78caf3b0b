from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import audit

CAPTION = "a serene beach at sunrise, 35mm"


def test_it_is_the_change_over_the_first_guided_step(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    t0, t1 = reference.timesteps[:2]
    x, e, empty = reference.noise(5), reference.hidden(CAPTION), reference.hidden("")
    with torch.no_grad():
        first, without = reference.eps(x, t0, e), reference.eps(x, t0, empty)
        guided = without + 7.5 * (first - without)
        a0, a1 = reference.alpha(t0), reference.alpha(t1)
        original = (x - (1 - a0) ** 0.5 * guided) / a0**0.5
        after = a1**0.5 * original + (1 - a1) ** 0.5 * guided
        expected = float((reference.eps(after, t1, e) - first).square().sum())
    found = audit.screen(model, [CAPTION], [5], ["step_change"])["step_change"][0].as_py()
    assert found == pytest.approx(expected, rel=1e-4)


def test_it_is_the_same_in_any_batch_and_order(check_rows: Callable[[str], None]) -> None:
    check_rows("step_change")


def test_it_takes_one_forward_more_than_the_noise_magnitude(small: audit.Model) -> None:
    timesteps: list[int] = []
    handle = small.unet.register_forward_pre_hook(lambda _, inputs: timesteps.append(int(inputs[1])))
    audit.screen(small, ["a dog"], detectors=["noise_magnitude", "step_change"])
    handle.remove()
    assert timesteps == [981, 981, 961]
