"""A picture counts as found once, by whichever of its captions is generated first."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.planted.bench import curves
from benchmarks.planted.bench.data import CAPTIONS
from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.truth import TRUTH


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Write four captions: two of one memorized picture, one of another, and one never trained on."""
    rows = [("a1", "many_captions", "a"), ("a2", "many_captions", "a"), ("b", "dose", "b"), ("n", "never", "n")]
    captions = [{"caption": c, "kind": k, "dose": 1, "cluster": g, "style": "name", "images": []} for c, k, g in rows]
    pq.write_table(pa.Table.from_pylist(captions, schema=CAPTIONS), tmp_path / "captions.parquet")
    truth = [{"caption": c, "seed": 1, "kind": k, "pixels_whole": k != "never"} for c, k, _ in rows]
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH), tmp_path / "truth.parquet")
    return Labels.read(tmp_path)


def test_pictures_found_by_budget(labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BUDGETS", (1, 2, 3, 4))
    found = curves.found_by_budget(labels, {"detector": {"a1": 4.0, "a2": 3.0, "n": 2.0, "b": 1.0}})
    assert found == {"detector": [(1.0, 0.5), (2.0, 0.5), (3.0, 0.5), (4.0, 1.0)]}


def test_a_rate_that_allows_no_negative_counts_the_positives_above_all_negatives(labels: Labels) -> None:
    found = dict(curves.roc(labels, {"detector": {"a1": 4.0, "a2": 3.0, "n": 3.5, "b": 1.0}})["detector"])
    assert found[0.001] == pytest.approx(1 / 3)
    assert found[1.0] == 1.0
