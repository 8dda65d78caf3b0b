"""Every row of a Parquet file is in exactly one place: the table, or the errors."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import UsageError
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as reading
from pipelines.reading import parquet
from pipelines.reading.files import find
from pipelines.reading.slices import Slice
from tests.support.toy import write_parquet


def plan(path: Path, **columns: str) -> list[Slice]:
    [file] = find(str(path), "captions")
    parts, errors = reading.plan(file, Captions(path=str(path), **columns))
    assert errors == []
    return parts


def read(part: Slice, start: int, stop: int, **columns: str) -> tuple[pa.Table, list[dict]]:
    return reading.read(part, start, stop, Captions(path="x", **columns))


@settings(max_examples=40)  # each writes a file
@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.binary(max_size=5)), min_size=1, max_size=40))
def test_no_row_is_lost_or_counted_twice(tmp_path_factory: pytest.TempPathFactory, values: list) -> None:
    path = tmp_path_factory.mktemp("any") / "0.parquet"
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    write_parquet(path, {"caption": pa.array(encoded, pa.binary()).cast(pa.string(), safe=False)})
    seen = []
    for part in plan(path):
        for start in range(0, part.rows, 7):
            table, errors = read(part, start, min(start + 7, part.rows))
            seen += table["row"].to_pylist() + [error["row"] for error in errors]
            kept = zip(table["row"].to_pylist(), table["caption"].to_pylist(), strict=True)
            assert all(encoded[row] == text.encode() for row, text in kept)
    assert sorted(seen) == list(range(len(values)))


def test_slices_are_consecutive_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": [str(row) for row in range(40)]})  # groups of 16, 16, 8
    [whole] = plan(tmp_path / "0.parquet")
    assert (whole.place, whole.rows) == ((0, 1, 2), 40)
    monkeypatch.setattr(parquet, "SLICE_ROWS", 24)
    first, second = plan(tmp_path / "0.parquet")
    assert (first.place, first.rows) == ((0,), 16)
    assert (second.place, second.first, second.rows) == ((1, 2), 16, 24)
    table, _ = read(second, 20, 22)
    assert table.select(["caption", "row"]).to_pylist() == [{"caption": "36", "row": 36}, {"caption": "37", "row": 37}]


def test_keys_and_urls_are_found_by_name_and_numbers_become_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": ["a"], "key": [7], "link": ["b"]})
    [part] = plan(tmp_path / "0.parquet", url="link")
    [row] = read(part, 0, 1, url="link")[0].to_pylist()
    assert row == {"caption": "a", "row": 0, "key": "7", "url": "b"}
    with pytest.raises(UsageError, match="no column 'lnk'.*\n.*captions.url: link"):
        plan(tmp_path / "0.parquet", url="lnk")


def test_a_dictionary_column_is_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": pa.array(["a", None, "a"]).dictionary_encode()})
    [part] = plan(tmp_path / "0.parquet")
    table, errors = read(part, 0, 3)
    assert table["caption"].to_pylist() == ["a", "a"]
    assert [error["row"] for error in errors] == [1]
