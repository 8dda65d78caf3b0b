"""A measurement warms up, takes a batch, and grows while it is short."""

from __future__ import annotations

import pytest

from pipelines.planning import probing
from pipelines.planning.probing import timed


def units_of(batch: int, most: int | None = None) -> list[int]:
    """How many units short work was done of, each time."""
    done: list[int] = []

    def work(units: int) -> None:
        done.append(units)
        sum(range(1000 * units))

    found = timed(work, batch, most)
    assert found.units == done[-1]
    assert found.seconds > 0
    return done


def test_the_first_is_done_twice_then_a_batch_then_ever_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "SHORT", 0.1)
    done = units_of(16)
    assert done[:4] == [1, 1, 16, 64]
    assert all(later == 4 * sooner for sooner, later in zip(done[2:], done[3:], strict=False))


def test_no_more_is_done_than_there_is() -> None:
    assert units_of(16, 40) == [1, 1, 16, 40]
    assert units_of(16, 5) == [1, 1, 5]
    assert units_of(16, 1) == [1, 1]


def test_where_one_takes_long_one_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "WAIT", 0.0)
    assert units_of(16) == [1]
