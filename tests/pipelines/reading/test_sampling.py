"""A sample is exact in size, and the same however the rows are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reading.sampling import Sample


@given(st.data(), st.integers(1, 300), st.integers(0, 2**40))
def test_so_many_rows_are_taken_whoever_asks(data: st.DataObject, total: int, seed: int) -> None:
    sample = Sample(data.draw(st.integers(1, total)), total, seed)
    whole = sample.within(0, total)
    assert len(whole) == len(set(whole.tolist())) == sample.size
    bounds = sorted({0, total, *data.draw(st.lists(st.integers(0, total), max_size=8))})
    pieces = [sample.within(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    assert np.concatenate(pieces).tolist() == whole.tolist() == sorted(whole.tolist())


def test_every_row_is_as_likely_as_any_other() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        counts[Sample(20, 50, seed).within(0, 50)] += 1
    assert np.abs(counts - 800).max() < 5 * np.sqrt(2000 * 0.4 * 0.6)


def test_of_a_data_set_beyond_what_fits_a_machine_a_shard_knows_its_own() -> None:
    sample = Sample(3_000_000_000, 5_000_000_000, 1)
    taken = sample.within(4_999_000_000, 5_000_000_000)
    assert abs(len(taken) - 600_000) < 3000
    assert taken[-1] < 5_000_000_000
