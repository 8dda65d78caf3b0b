"""Query a run with SQL."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from audit.errors import AuditError
from reports.stored_run import locate
from reports.views import connect


def query(run: str | Path, sql: str) -> pa.Table:
    """Run one SQL statement over the views of a run and return its result.

    Raises AuditError with DuckDB's message if the statement fails.
    """
    with connect(run) as connection:
        try:
            relation = connection.sql(sql)
            return relation.to_arrow_table() if relation is not None else pa.table({})
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(
                str(error).strip(), where="query", hint="List the tables with `show tables`.", kind="query"
            ) from error
