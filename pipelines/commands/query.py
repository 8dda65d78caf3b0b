"""The command `crossaudit query`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


class Format(StrEnum):
    """The output format of a query."""

    table = "table"
    csv = "csv"
    json = "json"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = 'Example: crossaudit query run "select verdict, count(*) from verdicts group by all"'
    app.command(rich_help_panel=panel, epilog=example)(query)


def query(
    run: RunDir,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SQL statement.", show_default=False)],
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.table,
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

    The views include rows, captions, screen, scores, generations, matches,
    evidence, verdicts and errors. The statement `show tables` lists all of them.

    CSV output is UTF-8 with unchanged data and base64 for bytes. On a terminal,
    control characters are escaped.
    """
    from audit.errors import UsageError
    from pipelines.console.progress import waiting
    from reports.query import query as ask

    if spreadsheet_safe and format is not Format.csv:
        raise UsageError("--spreadsheet-safe works with CSV only", hint="Add --format csv.")
    with waiting("running the query"):
        result = ask(run, sql)
    if format is Format.csv:
        _print_csv(result, spreadsheet_safe)
    elif format is Format.json:
        _print_json(result)
    else:
        show(result)


def _print_csv(table: pa.Table, spreadsheet_safe: bool) -> None:
    from pipelines.console.terminal import say
    from reports.spreadsheet import neutralised, to_csv

    if spreadsheet_safe:
        table, changed = neutralised(table)
        say(f"--spreadsheet-safe: put ' before {changed:,} cells that look like formulas", err=True)
    content = to_csv(table)
    if sys.stdout.isatty():
        say(content.decode(), nl=False)
    else:
        _write(content)


def _print_json(table: pa.Table) -> None:
    from pipelines.console.terminal import visible_json
    from reports.spreadsheet import plain

    for row in table.to_pylist():
        _write(f"{visible_json(json.dumps(row, default=plain, ensure_ascii=False))}\n".encode())


def _write(content: bytes) -> None:
    """Write bytes to standard output, unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def show(result: pa.Table) -> None:
    """Print a table. Without a terminal, it is as wide as its content."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from pipelines.console.terminal import Console, visible

    table = Table(*(escape(visible(name, keep="")) for name in result.column_names))
    for row in zip(*(column.to_pylist() for column in result.columns), strict=True):
        table.add_row(*(Text(visible(_cell(value), keep="")) for value in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
