"""A caption counts as memorized by the seeds in which it reproduces, by pixels and by SSCD apart."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.planted.bench.data import CAPTIONS
from benchmarks.planted.bench.labels import ANY, BY_SSCD, HALF_MEMORIZED, Labels
from benchmarks.planted.bench.truth import TRUTH

# caption, kind, seeds with a copy by pixels of the whole image, of the region, and by SSCD
ROWS = [
    ("often", "dose", 8, None, 8),
    ("half", "dose", 1, None, 0),
    ("region", "template", 0, 4, 0),
    ("similar", "dose", 0, None, 2),
    ("near", "near", 3, None, 3),
    ("ordinary", "ordinary", 0, None, 0),
]


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    captions = [(caption, kind) for caption, kind, *_ in ROWS] + [("never", "never")]
    rows = [{"caption": c, "kind": k, "dose": 1, "cluster": c, "style": "name", "images": []} for c, k in captions]
    pq.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), tmp_path / "captions.parquet")
    truth = [
        {"caption": caption, "seed": seed, "kind": kind, "pixels_whole": seed < whole, "sscd_whole": seed < sscd}
        | {"pixels_region": None if region is None else seed < region}
        for caption, kind, whole, region, sscd in ROWS
        for seed in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(truth, schema=TRUTH), tmp_path / "truth.parquet")
    return Labels.read(tmp_path)


@pytest.mark.parametrize(
    ("which", "expected"),
    [(ANY, ["often", "half", "region"]), (HALF_MEMORIZED, ["half", "region"]), (BY_SSCD, ["often", "similar"])],
)
def test_positives_are_planted_captions_that_reproduce(labels: Labels, which: str, expected: list[str]) -> None:
    assert labels.positives(which) == expected


def test_negatives_do_not_reproduce_or_were_not_generated(labels: Labels) -> None:
    assert labels.negatives("ordinary") == ["ordinary"]
    assert labels.negatives("never") == ["never"]
    assert labels.negatives("near") == []
    assert labels.seeds == dict.fromkeys((caption for caption, *_ in ROWS), 8)


def test_a_caption_reproduces_in_most_seeds_if_it_does_in_more_than_half(labels: Labels) -> None:
    assert labels.in_most_seeds("often")
    assert not labels.in_most_seeds("region")  # 4 of 8
