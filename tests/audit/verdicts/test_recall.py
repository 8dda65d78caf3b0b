"""Strata split the captions by length, writing and repetition, and each states the recall of the budget in it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from audit.statistics.bounds import HIGH, Tally
from audit.statistics.finite import at_most
from audit.verdicts.recall import Counted, RecallInStratum, count, recall_by_stratum


def captions(*rows: tuple[str, int, str | None, str]) -> pa.Table:
    names = ["caption", "row_count", "selected_by", "verdict"]
    kinds = [pa.string(), pa.int64(), pa.string(), pa.string()]
    columns = [list(values) for values in zip(*rows, strict=True)]
    return pa.table([pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)], names)


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ("a cat", 1, ("0 to 25 characters", "Latin", "1 row")),
        ("naïve café, 5 cm × 3 (new)", 9, ("26 to 50 characters", "Latin", "2 to 9 rows")),
        ("кот сидит", 10, ("0 to 25 characters", "not only Latin", "10 rows or more")),
        ("x" * 100, 2, ("51 to 100 characters", "Latin", "2 to 9 rows")),
        ("x" * 101, 1, ("101 characters or more", "Latin", "1 row")),
    ],
)
def test_a_caption_is_in_one_stratum_of_each_kind(text: str, rows: int, expected: tuple[str, str, str]) -> None:
    found = count(captions((text, rows, None, "not_selected")))
    assert [counted.value for counted in found] == list(expected)


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    table = captions(("a", 1, "budget", "verbatim"), ("b", 1, None, "not_selected"), ("c", 12, "sample", "unknown"))
    assert count(table[:1]) + count(table[1:]) == count(table)


def test_a_stratum_states_its_own_census_its_own_sample_and_its_own_recall() -> None:
    counts = {
        Counted("rows", "1 row", "budget", "unconfirmed"): 40,
        Counted("rows", "1 row", "sample", "unconfirmed"): 20,
        Counted("rows", "1 row", None, "not_selected"): 440,
        Counted("rows", "10 rows or more", "budget", "verbatim"): 60,
        Counted("rows", "10 rows or more", "sample", "unknown"): 2,
        Counted("rows", "10 rows or more", "sample", "unconfirmed"): 8,
        Counted("rows", "10 rows or more", None, "not_selected"): 30,
    }
    once, often = recall_by_stratum(counts, (1000, 0))
    assert once == RecallInStratum(
        "rows", "1 row", 500, Tally(40, 0, 0), Tally(20, 0, 0), at_most(0, 20, 460, HIGH), None
    )
    assert (often.census, often.sample) == (Tally(60, 60, 0), Tally(10, 0, 2))
    assert often.missed_high == at_most(2, 10, 40, HIGH)
    assert often.recall_low is not None
    assert often.recall_low == pytest.approx(58 / (58 + often.missed_high), abs=0.05)
