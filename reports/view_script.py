"""Write a run's views as a SQL script that works in DuckDB without crossaudit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow import fs

from audit.errors import UsageError
from reports.stored_run import OPEN_SCHEMAS, SCHEMAS, StoredRun, locate
from reports.views import VIEWS, definition, identifier, literal, naming_damage, small_tables

# Object stores that both pyarrow or fsspec and DuckDB can read.
_SCHEMES = ("s3", "gs", "gcs", "az")
_HEAD = """\
-- The views of a crossaudit run for DuckDB. Use them with `duckdb -init FILE`, with `.read FILE` in its shell, or with
-- `duckdb.sql(open("FILE").read())` in Python.
--
-- They read the Parquet files of the run, which must stay where they are. `stages`, `thresholds` and `human_verdicts`
-- are as of the writing of this script. For an object store, first give DuckDB access, for example with
-- `create secret (type s3, provider credential_chain)`.
"""


def script(run: str | Path) -> str:
    """Return the SQL statements that create one view per table of a run, and the views of reports/sql.

    Raises:
        AuditError: This is no run.
        UsageError: DuckDB cannot read the run where it is.
    """
    located = locate(run)
    prefix = _prefix(located)
    stored = located.tables()
    with naming_damage([located]):
        computed = small_tables(located, stored)
    parts = [_HEAD]
    for table, files in stored.items():
        declared = located.layout(table, files) if table in SCHEMAS else None
        paths = [prefix + file.path for file in files]
        parts.append(_view(table, _of_parts(declared, paths, table in OPEN_SCHEMAS)))
    parts += [_view(table, _of_rows(content)) for table, content in computed.items()]
    parts += [_view(view, definition(view).rstrip()) for view in VIEWS]
    return "\n".join(parts)


def _prefix(run: StoredRun) -> str:
    """Return what DuckDB needs before the paths of the run's filesystem."""
    if isinstance(run.filesystem, fs.LocalFileSystem):
        return ""
    scheme = run.uri.partition("://")[0]
    if scheme not in _SCHEMES:
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        hint = f"Copy the run to a folder or to one of {known}."
        raise UsageError(f"DuckDB cannot read {scheme}://", where=run.uri, hint=hint)
    return f"{scheme}://"


def _view(name: str, select: str) -> str:
    return f"create or replace view {identifier(name)} as\n{select};\n"


def _of_parts(declared: pa.Schema | None, paths: list[str], differ: bool) -> str:
    """Return a SELECT statement of a table's parts.

    Args:
        declared: The columns that the table should have. None takes those of the parts.
        paths: The parts.
        differ: Whether some parts may lack columns of others.
    """
    files = ",\n    ".join(map(literal, paths))
    by_name = ", union_by_name = true" if differ else ""
    stored = [f"from read_parquet([\n    {files}\n]{by_name})"] if paths else []
    return "\nunion all by name\n".join([*([_no_rows(declared)] if declared is not None else []), *stored])


def _of_rows(table: pa.Table) -> str:
    """Return a SELECT statement of the rows of a small table."""
    values = ",\n    ".join(f"({', '.join(map(_value, row.values()))})" for row in table.to_pylist())
    names = ", ".join(map(identifier, table.column_names))
    stored = [f"from (values\n    {values}\n) as listed({names})"] if values else []
    return "\nunion all by name\n".join([_no_rows(table.schema), *stored])


def _no_rows(layout: pa.Schema) -> str:
    """Return a SELECT statement without rows that has the columns and types of a schema."""
    empty = duckdb.from_arrow(layout.empty_table())
    columns = (f"null::{kind} as {identifier(name)}" for name, kind in zip(empty.columns, empty.types, strict=True))
    return f"select {', '.join(columns)} where false"


def _value(value: Any) -> str:
    return "null" if value is None else literal(value) if isinstance(value, str) else repr(value).lower()
