"""Every row of a caption file is in exactly one place: the table, or the errors."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import AuditError, UsageError
from pipelines.config import Captions
from pipelines.reading import captions as reading
from pipelines.reading.files import find, fingerprint
from tests.pipelines.toy import write_parquet


def plan(path: Path, **columns: str) -> list:
    shards, _, errors = reading.plan(find(str(path), "captions"), Captions(path=str(path), **columns))
    assert errors == []
    return shards


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.binary(max_size=5)), min_size=1, max_size=40))
def test_no_row_is_lost_or_counted_twice(tmp_path_factory: pytest.TempPathFactory, values: list) -> None:
    path = tmp_path_factory.mktemp("any") / "0.parquet"
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    write_parquet(path, {"caption": pa.array(encoded, pa.binary()).cast(pa.string(), safe=False)})
    seen = []
    for shard in plan(path):
        for start in range(shard.start, shard.stop, 7):
            table, errors = reading.read(shard.source, start, min(start + 7, shard.stop))
            seen += table["row"].to_pylist() + [error["row"] for error in errors]
            kept = zip(table["row"].to_pylist(), table["caption"].to_pylist(), strict=True)
            assert all(encoded[row] == text.encode() for row, text in kept)
    assert sorted(seen) == list(range(len(values)))


def test_shards_are_consecutive_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": [str(row) for row in range(40)]})  # groups of 16, 16, 8
    [whole] = plan(tmp_path / "0.parquet")
    assert (whole.source.groups, len(whole)) == ((0, 1, 2), 40)
    monkeypatch.setattr(reading, "INPUT_ROWS", 24)
    first, second = plan(tmp_path / "0.parquet")
    assert (first.source.groups, len(first)) == ((0,), 16)
    assert (second.source.groups, second.source.first, len(second)) == ((1, 2), 16, 24)
    table, _ = reading.read(second.source, 20, 22)
    assert table.select(["caption", "row"]).to_pylist() == [{"caption": "36", "row": 36}, {"caption": "37", "row": 37}]


def test_keys_and_urls_are_found_by_name_and_numbers_become_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": ["a"], "key": [7], "link": ["b"]})
    [shard] = plan(tmp_path / "0.parquet", url="link")
    [row] = reading.read(shard.source, 0, 1)[0].to_pylist()
    assert row == {"caption": "a", "row": 0, "key": "7", "url": "b"}
    with pytest.raises(UsageError, match="no column 'lnk'.*\n.*captions.url: link"):
        plan(tmp_path / "0.parquet", url="lnk")


def test_a_dictionary_column_is_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": pa.array(["a", None, "a"]).dictionary_encode()})
    [shard] = plan(tmp_path / "0.parquet")
    table, errors = reading.read(shard.source, 0, 3)
    assert table["caption"].to_pylist() == ["a", "a"]
    assert [error["row"] for error in errors] == [1]


def test_null_captions_are_distinct_lines_or_values(tmp_path: Path) -> None:
    (tmp_path / "nulls.txt").write_bytes("one\r\ntwo\n\none\nthr\u2028ee\n".encode())
    assert reading.read_null_captions(str(tmp_path / "nulls.txt"), "caption") == ["one", "two", "thr\u2028ee"]
    write_parquet(tmp_path / "nulls.parquet", {"text": ["one", None, "two", "one"]})
    assert reading.read_null_captions(str(tmp_path / "nulls.parquet"), "text") == ["one", "two"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(AuditError, match="is not UTF-8"):
        reading.read_null_captions(str(tmp_path / "latin.txt"), "caption")


def test_a_fingerprint_sees_both_ends_of_a_large_file(tmp_path: Path) -> None:
    path, content = tmp_path / "large", bytearray(3 << 20)
    path.write_bytes(content)
    before = fingerprint(str(path))
    for at in (0, len(content) - 1):
        content[at] = 1
        path.write_bytes(content)
        assert fingerprint(str(path)) != before
        content[at] = 0
    path.write_bytes(content + b"\0")
    assert fingerprint(str(path)) != before
