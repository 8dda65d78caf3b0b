from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from audit import schema
from audit.errors import AuditError
from reports.query import query
from reports.stored_run import SCHEMAS, locate
from reports.views import connect


def test_every_table_of_the_contract_is_a_view_empty_where_the_run_has_none(run: Path) -> None:
    with connect(run) as connection:
        for table, layout in SCHEMAS.items():
            names = [column[0] for column in connection.execute(f"select * from {table} limit 0").description or ()]
            assert set(layout.names) <= set(names)
        assert connection.execute("select count(*) from mitigation").fetchall() == [(0,)]


def test_a_view_reads_all_parts_and_the_detector_columns_of_this_run(run: Path) -> None:
    rows = sum(pq.read_metadata(part).num_rows for part in (run / "screen").iterdir())
    result = query(run, "select count(*) as n, count(entropy_single_step) as scored from screen")
    assert result.to_pylist() == [{"n": rows, "scored": rows}]


def test_embeddings_are_seen_without_their_vectors(run: Path) -> None:
    table = query(run, "select * from embeddings_sscd")
    assert table.column_names == [name for name in schema.embeddings(4).names if name != "vector"]
    assert table.num_rows == 7


@pytest.mark.parametrize("name", ["_00009.parquet", ".00009.parquet", "00009.parquet.tmp"])
def test_temporary_files_are_not_parts(own_run: Path, name: str) -> None:
    before = query(own_run, "select count(*) as n from captions")
    (own_run / "captions" / name).write_bytes((own_run / "captions" / "00000.parquet").read_bytes())
    (own_run / "_captions").mkdir()
    (own_run / "_captions" / "00000.parquet").write_bytes(b"half written")
    assert query(own_run, "select count(*) as n from captions") == before


@pytest.mark.parametrize(
    "statement",
    [
        "copy captions to '{there}/stolen.csv'",
        "copy captions to '{run}/captions/00009.parquet'",
        "attach '{there}/other.db'",
        "export database '{there}/all'",
        "install httpfs",
        "load httpfs",
        "select * from '{run}/captions/00000.parquet'",
        "select * from read_parquet('{run}/captions/*.parquet')",
        "select * from read_text('/etc/hostname')",
        "select * from glob('/*')",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "set python_enable_replacements = true",
        "insert into captions values ('a', 'b', 1)",
        "select * from run",
    ],
)
def test_a_query_reads_the_views_and_nothing_else_and_writes_nothing(run: Path, tmp_path: Path, statement: str) -> None:
    before = sorted(run.rglob("*"))
    with pytest.raises(AuditError):
        query(run, statement.format(there=tmp_path, run=run))
    assert list(tmp_path.iterdir()) == []
    assert sorted(run.rglob("*")) == before


def test_a_python_variable_is_not_a_table(run: Path) -> None:
    secret = query(run, "select 1 as x")
    with connect(run) as connection, pytest.raises(duckdb.CatalogException):
        connection.execute("select * from secret")
    assert secret.num_rows == 1


def test_a_query_does_not_write_where_duckdb_may_by_default(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    with pytest.raises(AuditError):
        query(run, "copy captions to '.tmp/stolen.csv'")
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_what_memory_cannot_hold_goes_to_a_folder_that_goes_too(run: Path) -> None:
    with connect(run) as connection:
        [(folder,)] = connection.execute("select current_setting('temp_directory')").fetchall()
        connection.execute(f"copy captions to '{folder}/kept.csv'")
        assert Path(folder, "kept.csv").exists()
    assert not Path(folder).exists()


def test_a_run_may_be_a_uri(run: Path) -> None:
    assert query(run.as_uri(), "from captions") == query(run, "from captions")
    assert locate(run.as_uri()).manifest() == locate(run).manifest()


def test_what_is_no_run_is_an_audit_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no such directory"):
        query(tmp_path / "nowhere", "select 1")
    with pytest.raises(AuditError, match="cannot be opened"):
        query("nosuchscheme://somewhere", "select 1")
    with pytest.raises(AuditError, match="no manifest.json"):
        locate(tmp_path).manifest()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AuditError, match="not JSON"):
        locate(tmp_path).manifest()
