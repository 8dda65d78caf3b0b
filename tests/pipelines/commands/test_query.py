"""crossaudit query, sql and views: formats, files and exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.record.filesystem import open_file
from tests.support.called import crossaudit
from tests.support.toy import judged

SQL = "select caption, score from verdicts order by caption"
ROWS = [{"caption": "=1+1", "score": 1.5}, {"caption": "b\x1b[31m", "score": 1.5}]


@pytest.fixture
def run(tmp_path: Path) -> str:
    """What there is of a run after `verdicts`: two captions."""
    return judged(str(tmp_path / "run"), {"a": "=1+1", "b": "b\x1b[31m"}, 1.5)


@pytest.mark.parametrize("place", ["{folder}/new/out.parquet", "memory://query/out.parquet"])
def test_parquet_is_written_to_a_path_or_a_uri(run: str, tmp_path: Path, place: str) -> None:
    out = place.format(folder=tmp_path)
    code, output, error = crossaudit("query", run, SQL, "--format", "parquet", "--out", out)
    assert (code, output, error) == (0, "", f"{out}: 2 rows\n")
    assert pq.read_table(open_file(out)).to_pylist() == ROWS


def test_csv_and_json_files_hold_what_would_be_printed(run: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options in (["--format", "csv"], ["--format", "csv", "--spreadsheet-safe"], ["--format", "json"]):
        assert crossaudit("query", run, SQL, *options, "--out", out).returncode == 0
        assert out.read_bytes().decode() == crossaudit("query", run, SQL, *options).stdout
    assert [json.loads(line) for line in out.read_text().splitlines()] == ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "parquet"], "Parquet cannot be printed"),
        (["--out", "x.csv"], "--out needs a file format"),
        (["--format", "json", "--spreadsheet-safe"], "works with CSV only"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: str, options: list[str], message: str) -> None:
    code, output, error = crossaudit("query", run, SQL, *options)
    assert (code, output) == (2, "")
    assert message in error


def test_a_file_that_cannot_be_written_is_named(run: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file/out.csv")
    code, _, error = crossaudit("query", run, SQL, "--format", "csv", "--out", out)
    assert code == 1
    assert f"{out}: cannot be written" in error


def test_the_script_of_views_works_in_duckdb_alone(run: str) -> None:
    code, output, error = crossaudit("views", run)
    assert (code, error) == (0, "")
    bare = duckdb.connect()
    bare.execute(output)
    found: pa.Table = bare.sql(SQL).to_arrow_table()
    assert found.to_pylist() == ROWS


@pytest.mark.parametrize(("text", "code"), [("from funnel", 0), ("selec 1; ", 1)])
def test_the_shell_reads_a_pipe(run: str, monkeypatch: pytest.MonkeyPatch, text: str, code: int) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert crossaudit("sql", run).returncode == code


def test_what_is_no_run_exits_with_1(tmp_path: Path) -> None:
    for command in ("sql", "views"):
        code, _, error = crossaudit(command, str(tmp_path))
        assert code == 1
        assert "no manifest.json" in error
