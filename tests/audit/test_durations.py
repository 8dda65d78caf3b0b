"""Durations as people say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.durations import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (1.46, "1.5 s"),
        (3.0, "3 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.94, "1 min 0 s"),
        (250, "4 min 10 s"),
        (599.6, "10 min"),
        (1500, "25 min"),
        (3599, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (172_799, "2 d 0 h"),
        (1e6, "11 d 14 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(st.floats(0, 1e9))
def test_no_unit_overflows_and_little_is_rounded_away(seconds: float) -> None:
    words = duration(seconds).split()
    named = list(zip(map(float, words[::2]), words[1::2], strict=True))
    assert len(named) <= 2
    assert all(
        number < {"s": 60, "min": 60, "h": 48 if len(words) == 4 else 24, "d": 1e9}[unit] for number, unit in named
    )
    value = sum(number * {"s": 1, "min": 60, "h": 3600, "d": 86_400}[unit] for number, unit in named)
    assert value == pytest.approx(seconds, rel=0.06, abs=0.0501)
