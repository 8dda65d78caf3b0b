"""Open runs as a read-only database: one DuckDB view per table, and the views of reports/sql.

See docs/decisions/0008-sql-on-registered-tables.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath

import duckdb
import pyarrow as pa
from pyarrow.fs import FileInfo

from audit.errors import AuditError, UsageError
from audit.statistics.raters import human_verdicts
from reports.stored_run import StoredRun, locate, of_manifest

# The views of reports/sql. No statement there reads another one of them.
VIEWS = (
    "cases",
    "families",
    "by_host",
    "by_row_count",
    "funnel",
    "near_misses",
    "detector_agreement",
    "recall_by_budget",
)


def definition(view: str) -> str:
    """Return the file of a view: a comment that says what a row and each column is, and a SELECT statement."""
    return resources.files("reports").joinpath("sql", f"{view}.sql").read_text(encoding="utf-8")


@contextmanager
def connect(run: str | Path, *others: str | Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection that can read only the tables of runs and leaves no files behind.

    Data that does not fit into memory spills to a temporary folder, which is deleted afterwards. (By default, DuckDB
    uses `.tmp` in the working directory and lets every statement write there.) The views of `embeddings_*` lack the
    column `vector`, because DuckDB 2.0 cannot read Arrow's float16.

    Args:
        run: A run.
        others: More runs. Each view then has the rows of all runs, and a first column `run` that names the run. The
            views of the n-th run alone are in the schema `run_<n>`.

    Yields:
        The connection.

    Raises:
        AuditError: One of these is not a run, or a part of it is damaged.
        UsageError: A run is given twice.
    """
    runs = [locate(each) for each in (run, *others)]
    names = run_names([each.uri for each in runs])
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection, naming_damage(runs):
        if len(runs) == 1:
            _create_views(connection, runs[0], "main")
        else:
            _create_union(connection, dict(zip(names, runs, strict=True)))
        settings = {"temp_directory": folder, "enable_external_access": "false", "lock_configuration": "true"}
        for setting, value in settings.items():
            connection.execute(f"set {setting} = {literal(value)}")
        yield connection


@contextmanager
def naming_damage(runs: Sequence[StoredRun]) -> Iterator[None]:
    """Replace an error by one that names a damaged part, if there is such a part in the runs."""
    try:
        yield
    except (AuditError, duckdb.Error, pa.ArrowException, OSError) as error:
        if not isinstance(error, (duckdb.ParserException, duckdb.CatalogException, duckdb.BinderException)):
            for run in runs:
                run.refuse_damaged()
        raise


def run_names(uris: Sequence[str]) -> list[str]:
    """Return a name for each run: the last part of its path, or the whole path if two runs would have the same name.

    Raises UsageError if a run is given twice.
    """
    if len(set(uris)) < len(uris):
        raise UsageError("a run is given twice", hint="Give each run once.")
    short = [PurePosixPath(uri).name for uri in uris]
    return short if len(set(short)) == len(short) else list(uris)


def literal(text: str) -> str:
    """Return text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def small_tables(run: StoredRun, parts: Mapping[str, Sequence[FileInfo]]) -> dict[str, pa.Table]:
    """Compute the tables that follow from what a run stores: `stages`, `thresholds` and `human_verdicts`.

    Args:
        run: The run.
        parts: Its parts, as `StoredRun.tables` lists them.
    """
    pairs, reviews = (run.dataset(table, parts[table]).to_table() for table in ("review_pairs", "reviews"))
    return {"human_verdicts": human_verdicts(pairs, reviews), **of_manifest(run.manifest())}


def _create_views(connection: duckdb.DuckDBPyConnection, run: StoredRun, schema: str) -> None:
    """Create the views of a run in a schema of the database."""
    parts = run.tables()
    computed = small_tables(run, parts) | {table: run.dataset(table, files) for table, files in parts.items()}
    if schema != "main":
        connection.execute(f"create schema {schema}")
    connection.execute(f"use {schema}")
    for table, content in computed.items():
        if schema == "main":
            connection.register(table, content)
        else:
            connection.register(f"{schema}_{table}", content)
            connection.execute(f"create view {identifier(table)} as from {identifier(f'{schema}_{table}')}")
    for view in VIEWS:
        connection.execute(f"create view {view} as\n{definition(view)}")
    connection.execute("use main")


def _create_union(connection: duckdb.DuckDBPyConnection, runs: dict[str, StoredRun]) -> None:
    """Create the views of several runs: those of each run in a schema of its own, and their unions in the main one."""
    selects: dict[str, list[str]] = {}
    for number, (name, run) in enumerate(runs.items(), 1):
        schema = f"run_{number}"
        _create_views(connection, run, schema)
        found = connection.execute("select view_name from duckdb_views() where schema_name = $1", [schema]).fetchall()
        for (view,) in found:
            source = f"{schema}.{identifier(view)}"
            selects.setdefault(view, []).append(f"select {literal(name)} as run, * from {source}")
    for view, parts in selects.items():
        connection.execute(f"create view {identifier(view)} as {' union all by name '.join(parts)}")
