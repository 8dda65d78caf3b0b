"""A cascade ranks the captions of its second stage above all others, and changes the order of neither."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planted.bench.timesteps import cascade


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.2, 1.0]))
def test_a_cascade_ranks_by_stage_and_then_by_that_stages_score(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    first_N, second_N = rng.standard_normal((2, 60))
    competing_N = rng.random(60) < 0.8
    score_N = cascade(first_N, second_N, share, competing_N)
    reached_N = first_N >= np.quantile(first_N[competing_N], 1 - share)
    expected = sorted(range(60), key=lambda i: (reached_N[i], second_N[i] if reached_N[i] else first_N[i]))
    assert sorted(range(60), key=lambda i: score_N[i]) == expected
