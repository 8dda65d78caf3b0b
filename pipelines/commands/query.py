"""The command `crossaudit query`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


class Format(StrEnum):
    """The output format of a query."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = 'Example: crossaudit query run "select verdict, count(*) from verdicts group by all"'
    app.command(rich_help_panel=panel, epilog=example)(query)


def query(
    run: RunDir,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SQL statement.", show_default=False)],
    format: Annotated[Format, typer.Option(help="The format of the result; json means JSON lines.")] = Format.table,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the result to a file or URI (default: print it).")
    ] = None,
    spreadsheet_safe: Annotated[
        bool,
        typer.Option(
            "--spreadsheet-safe",
            help="With --format csv: put ' before text that a spreadsheet would read as a formula.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Query the tables of a run in SQL (DuckDB, read-only). Each table is a view.

    Begin with the views cases, families, by_host, by_row_count, funnel,
    near_misses, detector_agreement and recall_by_budget. The statement
    `show tables` lists all views.

    CSV output is UTF-8 with unchanged data and base64 for bytes. On a terminal,
    control characters are escaped.
    """
    from audit.errors import UsageError
    from audit.record.filesystem import write_out
    from pipelines.console.progress import waiting
    from pipelines.console.table import show
    from pipelines.console.terminal import emit, say
    from reports.query import query as ask

    if spreadsheet_safe and format is not Format.csv:
        raise UsageError("--spreadsheet-safe works with CSV only", hint="Add --format csv.")
    if out is None and format is Format.parquet:
        raise UsageError("Parquet cannot be printed", hint="Add --out FILE.")
    if out is not None and format is Format.table:
        raise UsageError("--out needs a file format", hint="Add --format csv, --format json or --format parquet.")
    with waiting("running the query"):
        result = ask(run, sql)
    if format is Format.table:
        show(result)
        return
    content = _encoded(result, format, spreadsheet_safe)
    if out is None:
        emit(content)
    else:
        write_out(content, out)
        say(f"{out}: {result.num_rows:,} rows", err=True)


def _encoded(table: pa.Table, format: Format, spreadsheet_safe: bool) -> bytes:
    """Return a table as CSV, JSON lines or Parquet."""
    if format is Format.csv:
        return _csv(table, spreadsheet_safe)
    if format is Format.json:
        return _json_lines(table)
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue().to_pybytes())


def _csv(table: pa.Table, spreadsheet_safe: bool) -> bytes:
    from pipelines.console.terminal import say
    from reports.spreadsheet import neutralised, to_csv

    if spreadsheet_safe:
        table, changed = neutralised(table)
        say(f"--spreadsheet-safe: put ' before {changed:,} cells that look like formulas", err=True)
    return to_csv(table)


def _json_lines(table: pa.Table) -> bytes:
    from pipelines.console.terminal import visible_json
    from reports.spreadsheet import plain

    lines = (json.dumps(row, default=plain, ensure_ascii=False) for row in table.to_pylist())
    return "".join(f"{visible_json(line)}\n" for line in lines).encode()
