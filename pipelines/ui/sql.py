"""Answer SQL from the page: one SELECT statement, for a limited time, up to a number of rows."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from audit.durations import duration
from audit.errors import UsageError
from reports.views import connect

SECONDS = 30.0
_HINT = "The tables are views: `show tables` lists them, `describe verdicts` lists columns."


@dataclass(frozen=True)
class Result:
    """The first rows of a result, and whether there are more."""

    table: pa.Table
    more: bool


def select(run: str, sql: str, most_rows: int, seconds: float = SECONDS) -> Result:
    """Run one SELECT statement over the views of a run.

    Args:
        run: The run.
        sql: The statement; `show`, `describe` and `summarize` count as SELECT.
        most_rows: Rows to return at most.
        seconds: The time after which it is interrupted.

    Raises:
        UsageError: It is something else than one SELECT statement, it fails, or it takes too long.
        AuditError: A part of the run is damaged.
    """
    with connect(run) as connection:
        timer = threading.Timer(seconds, connection.interrupt)
        timer.start()
        try:
            _refuse_others(connection, sql)
            table = connection.sql(sql).limit(most_rows + 1).to_arrow_table()
        except duckdb.InterruptException as error:
            hint = "Ask for less, or use `crossaudit query`, which has no limit."
            raise UsageError(f"stopped after {duration(round(seconds))}", hint=hint) from error
        except duckdb.Error as error:
            raise UsageError(str(error).strip(), hint=_HINT) from error
        finally:
            timer.cancel()
        return Result(table.slice(0, most_rows), more=len(table) > most_rows)


def _refuse_others(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        kinds = [statement.type for statement in connection.extract_statements(sql)]
    except ValueError:  # a kind of statement that DuckDB's Python package does not know
        kinds = []
    if kinds != [duckdb.StatementType.SELECT]:
        raise UsageError("this page runs one SELECT statement at a time, and changes nothing", hint=_HINT)
