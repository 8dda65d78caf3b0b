"""SQL over a run."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from audit.errors import AuditError
from reports.views import connect, open_run


def query(run: str | Path, sql: str) -> pa.Table:
    """The result of one SQL statement over the views of a run; AuditError with DuckDB's own message if it fails."""
    open_run(run).manifest()  # a folder that is no run has no tables, and its views would all be empty
    with connect(run) as connection:
        try:
            relation = connection.sql(sql)
            return relation.to_arrow_table() if relation is not None else pa.table({})
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(
                str(error).strip(), where="query", hint="`show tables` lists the tables.", kind="query"
            ) from error
