"""Own: every caption learns what its images are duplicates of, one part of captions at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.steps import caption_clusters


def written(folder: Path, captions: list[list[str]], rows: list[tuple[str, str | None]], clusters: list[Any]) -> Ledger:
    """A run of captions in parts, rows (caption, image) and clusters (image, cluster, size)."""
    ledger = Ledger(str(folder))
    for number, ids in enumerate(captions):
        table = pa.table({"caption_id": ids, "caption": ids, "row_count": [1] * len(ids)}, schema=schema.CAPTIONS)
        ledger.write("captions", f"{number:05d}", table)
    known = [{"caption_id": caption, "image_id": image} for caption, image in rows]
    ledger.write("rows", "00000", pa.Table.from_pylist(known[::2], schema.ROWS))
    ledger.write("rows", "00001", pa.Table.from_pylist(known[1::2], schema.ROWS))
    if clusters:
        columns = list(map(list, zip(*clusters, strict=True)))
        ledger.write("image_clusters", "00000", pa.table(columns, schema.IMAGE_CLUSTERS))
    return ledger


def found(ledger: Ledger) -> list[list[tuple[Any, ...]]]:
    tables = list(caption_clusters.each(ledger, ledger.parts("captions")))
    assert all(table.schema.equals(caption_clusters.CAPTION_CLUSTERS) for table in tables)
    return [[tuple(row.values()) for row in table.to_pylist()] for table in tables]


def test_a_caption_is_of_the_cluster_that_most_rows_are_of(tmp_path: Path) -> None:
    clusters = [("a", "a", 2), ("b", "a", 2), ("c", "c", 1), ("d", "d", 1)]
    rows = [("1", "c"), ("1", "a"), ("2", "c"), ("3", "c"), ("4", "d"), ("5", None), ("6", "z")]
    ledger = written(tmp_path, [["1", "2", "3"], [], ["4", "5", "6"]], rows, clusters)
    assert found(ledger) == [
        [("1", "c", 3, 2), ("2", "c", 3, 1), ("3", "c", 3, 1)],
        [],
        [("4", "d", 1, 1), ("5", None, None, None), ("6", None, None, None)],
    ]


def test_without_clusters_no_caption_is_in_one(tmp_path: Path) -> None:
    ledger = written(tmp_path, [["1"], ["2"]], [("1", "a"), ("2", None)], [])
    assert found(ledger) == [[("1", None, None, None)], [("2", None, None, None)]]


@settings(max_examples=20)  # each writes a run
@given(
    images=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=40),
    cluster_of=st.lists(st.integers(0, 6), min_size=7, max_size=7),
    cut=st.integers(1, 10),
)
def test_it_is_what_a_join_in_memory_gives(
    tmp_path_factory: Any, images: list[tuple[int, int]], cluster_of: list[int], cut: int
) -> None:
    captions = [str(number) for number in range(10)]
    sizes = Counter(cluster_of)
    clusters = [(f"i{image}", f"c{cluster}", sizes[cluster]) for image, cluster in enumerate(cluster_of)]
    rows = [(str(caption), f"i{image}") for caption, image in images]
    parts = [captions[start : start + cut] for start in range(0, 10, cut)]
    ledger = written(tmp_path_factory.mktemp("run"), parts, rows, clusters)
    in_rows = Counter(cluster_of[image] for _, image in images)
    of_caption = defaultdict(set)
    for caption, image in images:
        of_caption[str(caption)].add(cluster_of[image])
    expected = []
    for caption in captions:
        mine = of_caption[caption]
        best = min(mine, key=lambda cluster: (-in_rows[cluster], cluster), default=None)
        known = best is not None
        row = (f"c{best}", in_rows[best], max(sizes[cluster] for cluster in mine)) if known else (None, None, None)
        expected.append((caption, *row))
    assert [row for part in found(ledger) for row in part] == expected


def test_what_cannot_be_joined_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = written(tmp_path, [["1"]], [("1", "a")], [("a", "a", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(caption_clusters, "MEMORY", "1KB")
        with pytest.raises(AuditError, match=r"(?s)cannot be joined: Out of Memory.*TMPDIR"):
            found(ledger)
    part = tmp_path / "image_clusters" / "00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(AuditError, match=r"(?s)cannot be joined: .*00000\.parquet"):
        found(ledger)
