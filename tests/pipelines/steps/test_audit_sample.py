"""The audit sample is a simple random sample of the captions outside the budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audit.record.manifest import RunManifest
from pipelines.steps.audit_sample import draw
from tests.support.manifests import manifest


@given(st.data())
def test_the_sample_is_outside_the_budget_without_repetition_and_the_same_for_the_same_seed(
    data: st.DataObject,
) -> None:
    total = data.draw(st.integers(1, 60))
    budget = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1)))), np.int64)
    size, seed = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 5))
    drawn = draw(budget, total, size, seed)
    assert len(set(drawn.tolist())) == len(drawn) == min(size, total - len(budget))
    assert not set(drawn.tolist()) & set(budget.tolist())
    assert all(0 <= number < total for number in drawn)
    assert drawn.tolist() == draw(budget, total, size, seed).tolist()


def test_every_caption_outside_the_budget_is_drawn_equally_often() -> None:
    budget = np.array([0, 3, 4])
    counts = np.bincount(np.concatenate([draw(budget, 10, 2, seed) for seed in range(3_500)]), minlength=10)
    assert counts[budget].sum() == 0
    assert stats.chisquare(np.delete(counts, budget)).pvalue > 1e-3


def test_the_seed_depends_on_the_contents_of_the_inputs_alone() -> None:
    def seed(*files: tuple[str, str]) -> int:
        known = {"kind": "captions", "rows": None, "slices": []}
        inputs = [known | {"file": file, "name": file, "sha256": digest} for file, digest in files]
        return RunManifest.model_validate(manifest(inputs=inputs)).seed_of_inputs

    assert seed(("a", "1"), ("b", "2")) == seed(("d", "2"), ("c", "1"))
    assert seed(("a", "1")) != seed(("a", "2"))
