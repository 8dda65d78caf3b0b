"""Rows that share a value in any column belong together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from audit.duplicates.components import joined
from tests.support.clusters import first_connected

rows = st.lists(st.tuples(st.none() | st.integers(0, 5), st.none() | st.integers(0, 5)), min_size=1, max_size=15)


@given(rows)
def test_groups_are_joined_through_every_column(values: list[tuple[int | None, int | None]]) -> None:
    shared = [
        [any(a is not None and a == b for a, b in zip(one, two, strict=True)) for two in values] for one in values
    ]
    edge = np.array(shared, bool) | np.eye(len(values), dtype=bool)
    columns = [pa.array(column, pa.int64()) for column in zip(*values, strict=True)]
    assert joined(columns).tolist() == first_connected(edge).tolist()


def test_a_value_joins_only_within_its_column() -> None:
    assert joined([pa.array(["a", "b"]), pa.array(["b", "a"])]).tolist() == [0, 1]
