"""A long calculation tells how far it is, whatever its batches are: counts grow to their totals."""

from __future__ import annotations

from itertools import pairwise

import pytest

import audit
from audit.explaining.caption import explain
from audit.explaining.layers import layers

CAPTIONS = ["a red cat", "a blue dog", "an old boat"]
CONTROL = [f"a {thing} in snow" for thing in ("house", "hill", "car", "lamp")]


class Told(dict[str, list[tuple[str, int, int]]]):
    """What was told, by step, in order."""

    def __call__(self, step: str, unit: str, done: int, total: int) -> None:
        self.setdefault(step, []).append((unit, done, total))


def complete(told: list[tuple[str, int, int]], unit: str, total: int) -> bool:
    """Whether all counts are of these units, never fall, and end at the total."""
    grows = all(one[1] < other[1] for one, other in pairwise(told))
    return grows and told[-1][1] == total and {(each[0], each[2]) for each in told} == {(unit, total)}


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.soak), 2, None])
def test_layers_tells_captions_of_both_kinds(small: audit.Model, batch_size: int | None) -> None:
    told, model = Told(), small.at_resolution(8)
    table = layers(model, CAPTIONS, CONTROL[:2], batch_size=batch_size, progress=told)
    assert list(told) == ["look at layers"]
    assert complete(told["look at layers"], "captions", 5)
    assert len(told["look at layers"]) == {1: 5, 2: 3, None: 2}[batch_size]
    if batch_size is not None:
        assert table.equals(layers(model, CAPTIONS, CONTROL[:2], batch_size=batch_size))


def test_explain_tells_every_step_of_its_runs(small: audit.Model) -> None:
    told = Told()
    explain(small, "a red dog", steps=3, control_captions=CONTROL, progress=told)
    assert list(told) == ["follow the caption", "screen", "follow control captions"]
    assert [done for _, done, _ in told["follow the caption"]] == [1, 2, 3]
    assert complete(told["screen"], "rows", 4)
    assert len(told["follow control captions"]) == 3
    assert complete(told["follow control captions"], "steps", 12)


def test_generate_tells_the_steps_of_all_rows(small: audit.Model) -> None:
    told = Told()
    audit.generate(small, CAPTIONS, [0, 1], steps=2, batch_size=4, progress=told)
    assert [done for _, done, _ in told["generate"]] == [4, 8, 10, 12]
    assert complete(told["generate"], "steps", 12)
