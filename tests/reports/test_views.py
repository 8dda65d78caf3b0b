import re
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from audit import schema
from audit.errors import AuditError, UsageError
from reports.query import query
from reports.stored_run import SCHEMAS, locate
from reports.views import connect, run_names


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


def test_several_runs_are_one_database_with_a_column_that_names_the_run(run: Path, own_run: Path) -> None:
    """`own_run` has another detector, and no part of `reviews`."""
    for part in (own_run / "screen").iterdir():
        table = pq.read_table(part)
        names = [name.replace("entropy_single_step", "noise_magnitude") for name in table.column_names]
        pq.write_table(table.rename_columns(names), part)
    one, other = str(run), str(own_run)  # both folders are called "run", so their paths tell them apart
    with connect(one, other) as connection:
        sql = "select run, count(*), count(entropy_single_step), count(noise_magnitude) from screen group by run"
        assert set(connection.execute(sql).fetchall()) == {(one, 318, 318, 0), (other, 318, 0, 318)}
        sql = "select distinct run, detector from detector_agreement where other_detector = 'score'"
        found = set(connection.execute(sql).fetchall())
        assert found == {(one, "entropy_single_step"), (other, "entropy_single_step"), (other, "noise_magnitude")}
        assert connection.execute("select count(*) from reviews").fetchall() == [(0,)]
        assert connection.execute("select count(*) from run_2.screen").fetchall() == [(318,)]


def test_runs_are_named_by_the_end_of_their_path_unless_that_is_ambiguous() -> None:
    assert run_names(["runs/june", "s3://bucket/runs/july/"]) == ["june", "july"]
    assert run_names(["a/run", "b/run"]) == ["a/run", "b/run"]
    with pytest.raises(UsageError, match="given twice"):
        run_names(["run", "run"])


def test_a_damaged_part_of_any_run_is_named(run: Path, own_run: Path) -> None:
    part = own_run / "verdicts/00000.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(AuditError, match=re.escape(str(part))), connect(run, own_run) as connection:
        connection.execute("from families").fetchall()
