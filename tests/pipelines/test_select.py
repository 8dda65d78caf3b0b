"""Which captions are generated, and when a q-value may be given."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from audit.statistics import q_values
from pipelines.stages.select import _highest, _q_values


def scores(*values: float | None) -> pa.Table:
    ids = [f"{number:02d}" for number in range(len(values))]
    return pa.table({"caption_id": ids, "score": pa.array(values, pa.float64())})


def test_the_budget_takes_the_highest_scores_and_never_a_failure() -> None:
    assert _highest(scores(1.0, 3.0, None, 2.0), 2).tolist() == [False, True, False, True]
    assert _highest(scores(1.0, None), 5).tolist() == [True, False]
    assert not _highest(scores(1.0), 0).any()


def test_ties_go_by_caption_id_so_that_a_rerun_selects_the_same() -> None:
    assert _highest(scores(1.0, 1.0, 1.0), 2).tolist() == [True, True, False]


def test_q_values_are_given_only_where_the_null_is_large_enough() -> None:
    p = np.array([0.01, 0.5, np.nan, 0.2])
    q, reason = _q_values(p, held_out=2)
    assert q.to_pylist()[2] is None
    assert [value for value in q.to_pylist() if value is not None] == pytest.approx(q_values([0.01, 0.5, 0.2]))
    assert reason == "Benjamini-Hochberg over 3 captions"
    q, reason = _q_values(p, held_out=1)
    assert q.null_count == 4
    assert reason.startswith("null: 3 captions need as many null captions held out, there are 1")
