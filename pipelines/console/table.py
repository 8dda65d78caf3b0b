"""Print an Arrow table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


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
