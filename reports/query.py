"""Query runs with SQL."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from audit.errors import AuditError
from reports.stored_run import StoredRun, locate
from reports.views import connect, naming_damage


class Result:
    """Hold the result of a query, which is computed when it is asked for.

    Attributes:
        relation: The result as DuckDB has it, for everything else that a `DuckDBPyRelation` can do.
    """

    def __init__(self, relation: duckdb.DuckDBPyRelation, runs: Sequence[StoredRun]) -> None:
        self.relation, self._runs = relation, runs

    def df(self) -> Any:
        """Return the result as a pandas data frame. This needs pandas. Raises AuditError if a part is damaged."""
        with query_errors(self._runs):
            return self.relation.df()

    def arrow(self) -> pa.Table:
        """Return the result as an Arrow table. Raises AuditError if a part is damaged."""
        with query_errors(self._runs):
            return self.relation.to_arrow_table()

    def summary(self, width: int, most_rows: int) -> str:
        """Return the first and the last rows as text.

        Args:
            width: Characters of a line. Columns that do not fit are left out, and their number is given.
            most_rows: Rows to show.

        Raises:
            AuditError: A part is damaged.
        """
        drawn = io.StringIO()
        with query_errors(self._runs), redirect_stdout(drawn):
            self.relation.show(max_width=width, max_rows=most_rows)
        return drawn.getvalue()

    def __repr__(self) -> str:
        with query_errors(self._runs):
            return repr(self.relation)


def query(run: str | Path, sql: str) -> pa.Table:
    """Run one SQL statement over the views of a run and return its result.

    Raises AuditError: with DuckDB's message if the statement fails, with the file's name if a part is damaged.
    """
    with connect(run) as connection:
        result = execute(connection, [locate(run)], sql)
        return result.arrow() if result is not None else pa.table({})


def execute(
    connection: duckdb.DuckDBPyConnection,
    runs: Sequence[StoredRun],
    sql: str,
    values: Mapping[str, Any] | None = None,
) -> Result | None:
    """Run one SQL statement over the views of opened runs.

    Args:
        connection: The connection of the runs, from `connect`.
        runs: The runs.
        sql: The statement.
        values: The values of its parameters: `$name` in the statement.

    Returns:
        The result, or None if the statement has none.

    Raises:
        AuditError: The statement fails, or a part is damaged.
    """
    with query_errors(runs):
        relation = connection.sql(sql, params=dict(values) if values else None)
        return Result(relation, runs) if relation is not None else None


@contextmanager
def query_errors(runs: Sequence[StoredRun]) -> Iterator[None]:
    """Raise an AuditError for every error of DuckDB: one that names the damaged part, if there is such a part."""
    try:
        with naming_damage(runs):
            yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        hint = "List the tables with `show tables`."
        raise AuditError(str(error).strip(), where="query", hint=hint, kind="query") from error
