"""SQL from the page: one SELECT statement, for a limited time, up to a number of rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.errors import UsageError
from pipelines.ui.sql import select


def test_a_result_ends_at_its_limit(attacked_run: Path) -> None:
    assert select(str(attacked_run), "select 1 as one", 5).table.to_pylist() == [{"one": 1}]
    exact, cut = (select(str(attacked_run), f"from range({n})", 5) for n in (5, 6))
    assert (len(exact.table), exact.more) == (5, False)
    assert (len(cut.table), cut.more) == (5, True)


@pytest.mark.parametrize("sql", ["show tables", "describe verdicts", "summarize scores", "from verdicts", "values (1)"])
def test_what_only_reads_is_answered(attacked_run: Path, sql: str) -> None:
    assert len(select(str(attacked_run), sql, 5).table)


@pytest.mark.parametrize(
    "sql",
    [
        "create table x (a int)",
        "drop view verdicts",
        "copy verdicts to 'x.csv'",
        "attach 'x.duckdb'",
        "set lock_configuration = false",
        "install httpfs",
        "update extensions",
        "explain analyze create table x (a int)",
        "select 1; drop view verdicts",
        "-- nothing",
    ],
)
def test_everything_else_is_refused(attacked_run: Path, sql: str) -> None:
    with pytest.raises(UsageError, match="one SELECT statement"):
        select(str(attacked_run), sql, 5)


@pytest.mark.parametrize(
    ("sql", "message"),
    [("selec", "syntax error"), ("from nowhere", "nowhere"), ("from read_csv('/etc/passwd')", "disabled")],
)
def test_a_statement_that_fails_says_why(attacked_run: Path, sql: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(str(attacked_run), sql, 5)


def test_a_statement_that_takes_too_long_is_stopped(attacked_run: Path) -> None:
    with pytest.raises(UsageError, match="stopped after"):
        select(str(attacked_run), "select count(*) from range(1e10::bigint) a, range(1e10::bigint) b", 5, seconds=0.2)
