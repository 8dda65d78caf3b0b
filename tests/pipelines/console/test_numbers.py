"""How counts, rates and remaining times are said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.console.numbers import Numbers, counted, fitting, rate

RUNNING = Numbers("screen", "captions", 1500, 3000, 500, 2, 25.0, 60.0, 3, "2026-11-28T00:00:00+00:00")


def test_a_line_says_everything_the_most_important_first() -> None:
    line = "1,500 of 3,000 captions, 2 errors, 25/s, 1 min 0 s left, 3 workers, 500 done earlier"
    assert RUNNING.line() == line


def test_what_is_unknown_or_nothing_is_left_out() -> None:
    new = replace(RUNNING, done=0, before=0, errors=0, per_second=0.0, eta_seconds=None, workers=None)
    assert new.line() == "0 of 3,000 captions"


def test_no_time_is_left_of_what_is_overdue() -> None:
    assert "left" not in replace(RUNNING, eta_seconds=0.2).line()


@pytest.mark.parametrize(
    ("count", "unit", "said"), [(1, "ranges", "1 range"), (0, "errors", "0 errors"), (2000, "rows", "2,000 rows")]
)
def test_one_is_singular(count: int, unit: str, said: str) -> None:
    assert counted(count, unit) == said


@pytest.mark.parametrize(
    ("per_second", "said"),
    [(134_203.2, "134,203/s"), (99.4, "99/s"), (4.33, "4.3/s"), (0.5, "30/min"), (0.01, "36/h"), (1e-5, "0.036/h")],
)
def test_slow_rates_are_per_minute_or_per_hour(per_second: float, said: str) -> None:
    assert rate(per_second) == said


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1), st.integers(0, 60))
def test_the_first_parts_that_fit_are_shown(parts: list[str], width: int) -> None:
    shown = fitting(parts, width)
    kept = shown.split(", ")
    assert parts[: len(kept)] == kept
    assert len(shown) <= max(width, len(parts[0]))
    assert len(kept) == len(parts) or len(shown) + 2 + len(parts[len(kept)]) > width
