from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import audit

CAPTION = "a serene beach at sunrise, 35mm"


def test_it_is_the_finite_difference_towards_the_empty_prompt(case: tuple[audit.Model, Any]) -> None:
    model, reference = case
    t, x = reference.timesteps[0], reference.noise(5)
    e, empty = reference.hidden(CAPTION), reference.hidden("")
    with torch.no_grad():
        change = reference.eps(x, t, e) - reference.eps(x, t, empty + 0.9 * (e - empty))
    expected = float(change.norm() / (0.1 * (e - empty).norm()))
    found = audit.screen(model, [CAPTION], [5], ["condition_difference"])["condition_difference"][0].as_py()
    assert found == pytest.approx(expected, rel=1e-3)


def test_it_is_the_same_in_any_batch_and_order(check_rows: Callable[[str], None]) -> None:
    check_rows("condition_difference")


def test_it_is_zero_for_the_empty_prompt(small: audit.Model) -> None:
    table = audit.screen(small, [""], detectors=["condition_difference"])
    assert table["condition_difference"].to_pylist() == [0.0]


def test_it_takes_two_forwards_and_one_without_caption(small: audit.Model) -> None:
    sizes: list[int] = []
    handle = small.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    audit.screen(small, ["a dog", "a boat"], detectors=["condition_difference"])
    handle.remove()
    assert sizes == [1, 2, 2]
