"""Which captions are generated, and when a q-value may be given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.statistics.intervals import conformal_p, q_values
from pipelines.stages.select import DUPLICATED, _below, _budget


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


def test_a_budget_of_a_false_discovery_rate_holds_all_captions_with_such_a_q_value() -> None:
    q = pa.array([0.2, 0.05, None, 0.1])
    assert _below(q, 0.1).tolist() == [1, 3]
    assert _below(q, 0.01).tolist() == []


@pytest.mark.parametrize("held_out", [20, 50, 400])
def test_the_false_discovery_rate_holds_also_with_fewer_control_captions_than_captions(held_out: int) -> None:
    """200 captions, 40 of them memorized, against few held-out control captions that all of them share."""
    rng, fdr, audits = np.random.default_rng(held_out), 0.1, 400
    memorized_N = np.arange(200) < 40
    shares = []
    for _ in range(audits):
        score_N = rng.normal(size=200) + 4 * memorized_N
        q_N = q_values(conformal_p(rng.normal(size=held_out), score_N))
        selected_N = np.isin(np.arange(200), _below(pa.array(q_N), fdr))
        shares.append((selected_N & ~memorized_N).sum() / max(1, selected_N.sum()))
    assert np.mean(shares) <= fdr + 3 * np.std(shares) / np.sqrt(audits)
