from pathlib import Path

import pytest

from audit.errors import AuditError
from reports.query import query


def test_a_query_gives_an_arrow_table(run: Path) -> None:
    table = query(run, "select verdict, count(*) as captions from verdicts group by all order by captions desc limit 1")
    assert table.to_pylist() == [{"verdict": "not_selected", "captions": 240}]


def test_tables_join(run: Path) -> None:
    sql = "select count(*) as n from verdicts join evidence using (image_id) where verdict = 'verbatim'"
    assert query(run, sql).to_pylist() == [{"n": 9}]


def test_a_statement_without_a_result_gives_an_empty_table(run: Path) -> None:
    assert query(run, "-- nothing").num_rows == 0


@pytest.mark.parametrize(
    ("sql", "message"),
    [("select * from verdict", "verdict"), ("selec 1", "syntax error"), ("select wrong from captions", "wrong")],
)
def test_a_wrong_query_says_what_duckdb_says(run: Path, sql: str, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        query(run, sql)


def test_a_truncated_part_is_an_error_and_never_fewer_rows(own_run: Path) -> None:
    part = own_run / "captions" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(AuditError, match="00001.parquet"):
        query(own_run, "select count(*) from captions")
