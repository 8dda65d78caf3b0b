"""crossaudit query"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    import pyarrow as pa


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    csv = "csv"
    json = "json"


def register(app: typer.Typer) -> None:
    example = 'Example: crossaudit query run "select verdict, count(*) from verdicts group by all"'
    app.command(epilog=example)(query)


def query(
    run: RunDir,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One statement.", show_default=False)],
    format: Annotated[Format, typer.Option(help="How to print the result.")] = Format.table,
    verbose: Verbose = False,
) -> None:
    """Ask a run in SQL (DuckDB, read-only): one view a table.

    rows, captions, screen, scores, generations, matches, evidence, verdicts, errors and more: `show tables`.
    """
    from reports.query import query as ask

    result = ask(run, sql)
    if format is Format.csv:
        import io

        from pyarrow import csv

        buffer = io.BytesIO()
        csv.write_csv(result, buffer)
        typer.echo(buffer.getvalue().decode(), nl=False)
    elif format is Format.json:
        for row in result.to_pylist():
            typer.echo(json.dumps(row, default=_plain, ensure_ascii=False))
    else:
        show(result)


def show(result: pa.Table) -> None:
    """Prints a table, as wide as it needs where nobody looks at a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(*map(escape, result.column_names))
    for row in zip(*(column.to_pylist() for column in result.columns), strict=True):
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str:
    import base64

    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
