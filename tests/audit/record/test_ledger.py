"""Parts are written whole or not at all, and what exists is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from audit.record.ledger import Ledger, Shard, concat, errors_table, slices
from tests.support.paths import ROOT


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "run"))


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def test_slices_cover_the_rows_once_in_order() -> None:
    shards = slices("a", "source", 10, 4)
    assert [(shard.name, shard.start, shard.stop) for shard in shards] == [
        ("a-00000", 0, 4),
        ("a-00001", 4, 8),
        ("a-00002", 8, 10),
    ]
    assert slices("a", "source", 0, 4) == []


def test_halves_cover_a_shard() -> None:
    left, right = Shard("a", None, 3, 8).halves()
    assert (left.start, left.stop, right.start, right.stop) == (3, 5, 5, 8)


def test_a_commit_writes_the_tables_and_the_errors_of_a_shard(ledger: Ledger) -> None:
    errors = errors_table([{"stage": "s", "kind": "k", "message": "m"}])
    assert ledger.commit("00000", {"main": numbers(1, 2), "other": numbers(3), "errors": errors}) == {
        "main": 2,
        "other": 1,
        "errors": 1,
    }
    assert ledger.parts("main") == ledger.parts("other") == ["00000"]
    assert ledger.parts("errors") == ["main-00000"]
    assert not list(Path(ledger.uri).rglob("*.tmp"))


def test_errors_of_an_earlier_try_go_when_there_are_none_any_more(ledger: Ledger) -> None:
    errors = errors_table([{"stage": "s", "kind": "k", "message": "m"}])
    ledger.write("errors", "main-00000", errors)  # and then the worker died
    ledger.commit("00000", {"main": numbers(1), "errors": errors_table([])})
    assert ledger.parts("errors") == []


def test_working_tables_have_a_folder_of_their_own_and_are_removed_together(ledger: Ledger) -> None:
    ledger.remove_work()  # nothing to remove
    ledger.commit("00000", {"_keys": numbers(1), "_more": numbers(2), "errors": errors_table([])})
    ledger.write("main", "00000", numbers(3))
    found = {str(path.relative_to(ledger.uri)) for path in Path(ledger.uri).rglob("*.parquet")}
    assert found == {"_work/keys/00000.parquet", "_work/more/00000.parquet", "main/00000.parquet"}
    assert ledger.parts("_keys") == ["00000"]
    assert ledger.read("_more")["n"].to_pylist() == [2]
    ledger.remove_work()
    assert ledger.parts("_keys") == ledger.parts("_more") == []
    assert ledger.parts("main") == ["00000"]
    assert not Path(ledger.uri, "_work").exists()


def test_working_tables_are_removed_from_a_file_system_of_fsspec() -> None:
    ledger = Ledger("memory://work-tables/run")
    ledger.remove_work()  # nothing to remove
    ledger.write("_keys", "00000", numbers(1))
    ledger.write("main", "00000", numbers(2))
    ledger.remove_work()
    assert ledger.parts("_keys") == []
    assert ledger.parts("main") == ["00000"]


def test_a_shard_whose_working_table_is_gone_is_written_again(ledger: Ledger) -> None:
    tables = {"main": numbers(1), "_beside": numbers(2)}
    ledger.commit("00000", tables)
    ledger.remove_work()
    ledger.commit("00000", tables)
    assert ledger.read("_beside")["n"].to_pylist() == [2]


def test_what_is_done_stays_whoever_comes_after(ledger: Ledger) -> None:
    errors = errors_table([{"stage": "s", "kind": "k", "message": "m"}])
    first = ledger.commit("00000", {"main": numbers(1), "other": numbers(2, 3), "errors": errors})
    assert ledger.commit("00000", {"main": numbers(4, 5), "other": numbers(), "errors": errors_table([])}) == first
    assert ledger.read("main")["n"].to_pylist() == [1]
    assert len(ledger.read("errors")) == 1


def test_what_a_killed_writer_left_is_no_part_and_is_swept(ledger: Ledger) -> None:
    ledger.write("main", "00001", numbers(1))
    Path(ledger.uri, "main", ".00000.parquet.0123.tmp").write_bytes(b"PAR1")
    assert ledger.parts("main") == ["00001"]
    ledger.sweep()
    assert [path.name for path in Path(ledger.uri).rglob("*") if path.is_file()] == ["00001.parquet"]


FILL = """
import resource, sys
import numpy as np, pyarrow as pa
from audit.errors import AuditError
from audit.record.ledger import Ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
ledger = Ledger(sys.argv[1])
ledger.write("main", "00000", pa.table({"x": np.arange(10)}))
for write in (
    lambda: ledger.write("main", "00001", pa.table({"x": np.random.default_rng(0).random(10_000)})),
    lambda: ledger.write_bytes("manifest.json", bytes(20_001)),
):
    try:
        write()
    except AuditError as error:
        print(error.kind, error)
"""


def test_where_there_is_no_room_nothing_partial_is_left_and_the_error_says_so(tmp_path: Path) -> None:
    """A limit on the size of files stops a write as a full disk does: half-way, by an error of the system."""
    root = str(ROOT)
    command = [sys.executable, "-c", FILL, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.count("disk_full") == done.stdout.count("there is no room to write") == 2
    assert str(tmp_path / "run/main/00001.parquet") in done.stdout
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["00000.parquet"]


def test_slice_and_read_follow_the_parts(ledger: Ledger) -> None:
    ledger.write("main", "00001", numbers(3, 4, 5))
    ledger.write("main", "00000", numbers(1, 2))
    assert ledger.read("main")["n"].to_pylist() == [1, 2, 3, 4, 5]
    assert ledger.slice("main", "00001", 1, 3)["n"].to_pylist() == [4, 5]
    assert ledger.rows("main", "00001") == 3
    with pytest.raises(KeyError):
        ledger.read("nothing")


def test_pieces_join_in_order_and_a_lost_row_takes_nulls_for_what_it_does_not_know() -> None:
    whole = pa.table({"id": ["a"], "score": [0.5]}).replace_schema_metadata({"k": "v"})
    lost = pa.table({"id": ["b"]})
    joined = concat([{"t": lost}, {"t": whole}])["t"]
    assert joined.to_pylist() == [{"id": "b", "score": None}, {"id": "a", "score": 0.5}]
    assert joined.schema.metadata == {b"k": b"v"}


def test_an_empty_piece_of_another_width_gives_way() -> None:
    empty = pa.table({"v": pa.array([], pa.list_(pa.float32(), 1))})
    full = pa.table({"v": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    assert concat([{"t": empty}, {"t": full}])["t"].equals(full)


def test_a_uri_and_a_path_are_the_same_run(ledger: Ledger) -> None:
    ledger.write("main", "00000", numbers(1))
    assert Ledger(f"file://{ledger.uri}").parts("main") == ["00000"]


def test_a_slice_and_a_range_are_the_rows_asked_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across row groups of three rows."""
    monkeypatch.setattr("audit.record.ledger.GROUP_ROWS", 3)
    ledger.write("t", "00000", numbers(*range(8)))
    ledger.write("t", "00001", numbers(2, 5, 9))
    for start, stop in ((0, 8), (0, 3), (2, 4), (3, 6), (7, 8), (4, 4)):
        assert ledger.slice("t", "00000", start, stop)["n"].to_pylist() == list(range(start, stop))
    assert ledger.between("t", "n", 2, 6)["n"].to_pylist() == [2, 3, 4, 5, 2, 5]
    monkeypatch.setattr("audit.record.ledger._TOGETHER", 1)
    assert [found["n"].to_pylist() for found in ledger.ranged("t", "n", 2, 6)] == [[2, 3, 4, 5], [2, 5]]
    ledger.write("t", "00002", numbers())
    assert ledger.slice("t", "00002", 0, 0)["n"].to_pylist() == []
