"""Which captions are generated, and when a q-value may be given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.record.ledger import Ledger
from audit.statistics.intervals import q_values
from pipelines.stages.select import _SCORED, DUPLICATED, SCORED, _budget, _q_values


def scores(*values: float | None, clusters: Sequence[tuple[str, int] | None] = ()) -> pa.Table:
    """Captions 00, 01, ... of these scores; `clusters`: (name, rows) of what each one's images are in."""
    known = [*clusters, *[None] * (len(values) - len(clusters))]
    return pa.table(
        {
            "caption_id": [f"{number:02d}" for number in range(len(values))],
            "score": pa.array(values, pa.float64()),
            "cluster": pa.array([of and of[0] for of in known], pa.string()),
            "rows": pa.array([of and of[1] for of in known], pa.int64()),
        }
    )


def taken(table: pa.Table, budget: int) -> list[bool]:
    return np.isin(np.arange(len(table)), _budget([table], budget)[0]).tolist()


def test_the_budget_takes_the_highest_scores_and_never_a_failure() -> None:
    assert taken(scores(1.0, 3.0, None, 2.0), 2) == [False, True, False, True]
    assert taken(scores(1.0, None), 5) == [True, False]
    assert not any(taken(scores(1.0), 0))


def test_ties_go_by_caption_id_so_that_a_rerun_selects_the_same() -> None:
    assert taken(scores(1.0, 1.0, 1.0), 2) == [True, True, False]


def test_half_of_the_budget_goes_to_duplicated_images_one_caption_of_each_first() -> None:
    big, other, small = ("big", DUPLICATED), ("other", 2 * DUPLICATED), ("small", DUPLICATED - 1)
    table = scores(9, 8, 7, 6, 5, 4, 3, clusters=[None, None, small, big, big, other, None])
    assert taken(table, 4) == [True, True, False, True, False, True, False]
    assert _budget([table], 4)[1] == 1
    assert taken(table, 5) == [True, True, True, True, False, True, False]
    assert taken(table, 6) == [True, True, True, True, True, True, False]


@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=30),
    large=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    budget=st.integers(0, 35),
)
def test_the_budget_is_used_up_the_better_half_always_in_it_and_all_of_it_by_score_without_duplicates(
    values: list[float | None], large: list[int], budget: int
) -> None:
    scored = sum(value is not None for value in values)
    plain = taken(scores(*values, clusters=[("c", DUPLICATED - 1)] * len(values)), budget)
    order = sorted((-v, n) for n, v in enumerate(values) if v is not None)
    assert np.flatnonzero(plain).tolist() == sorted(n for _, n in order[:budget])
    clusters = [(str(name), DUPLICATED) if name else None for name in large[: len(values)]]
    table = scores(*values, clusters=clusters)
    found, by_rows = taken(table, budget), _budget([table], budget)[1]
    assert sum(found) == min(budget, scored)
    assert all(found[n] for _, n in order[: budget - budget // 2])
    assert by_rows == sum(np.array(found, bool) & ~np.array(plain, bool))


@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=30),
    clusters=st.lists(st.integers(0, 3), min_size=30, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
    budget=st.integers(0, 35),
)
def test_the_budget_does_not_depend_on_how_captions_are_cut_into_parts(
    values: list[float | None], clusters: list[int], cuts: list[int], budget: int
) -> None:
    table = scores(*values, clusters=[(str(name), DUPLICATED) for name in clusters[: len(values)]])
    ends = sorted({min(cut, len(table)) for cut in cuts} | {len(table)})
    parts = [table.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    (whole, by_rows), (found, also) = _budget([table], budget), _budget(parts, budget)
    assert (found.tolist(), also) == (whole.tolist(), by_rows)


def test_q_values_are_given_only_where_the_null_is_large_enough(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    for name, p in {"0": [0.01, 0.5], "1": [None, 0.2]}.items():
        ledger.write(SCORED, name, pa.table([["a", "b"], [1.0, 1.0], pa.array(p, pa.float64())], schema=_SCORED))
    q, reason = _q_values(ledger, held_out=2)
    assert q is not None
    assert q.to_pylist()[2] is None
    assert [value for value in q.to_pylist() if value is not None] == pytest.approx(q_values([0.01, 0.5, 0.2]))
    assert reason == "Benjamini-Hochberg over 3 captions"
    q, reason = _q_values(ledger, held_out=1)
    assert q is None
    assert reason.startswith("null: 3 captions need as many held-out control captions, but there are 1")
