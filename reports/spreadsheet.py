"""Convert tables to CSV whose text reads back unchanged, and neutralise spreadsheet formulas on request."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

# First characters that make a spreadsheet read a cell as a formula (OWASP, "CSV Injection"). Spreadsheets may strip
# leading tabs, CR and LF.
FORMULA = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"


def to_csv(table: pa.Table) -> bytes:
    """Return a table as CSV in UTF-8. Bytes become base64; lists and structs become JSON; text is unchanged."""
    buffer = io.BytesIO()
    csv.write_csv(pa.Table.from_arrays([_text(column) for column in table.columns], table.column_names), buffer)
    return buffer.getvalue()


def neutralised(table: pa.Table) -> tuple[pa.Table, int]:
    """Prefix every cell and column name that a spreadsheet would read as a formula with an apostrophe.

    Only text columns are changed; numbers stay numbers.

    Returns:
        The table and the number of changed cells and names.
    """
    columns, changed = [], 0
    for column in table.columns:
        column = _text(column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            formula = pc.fill_null(pc.match_substring_regex(column, FORMULA), False)
            changed += pc.sum(formula).as_py() or 0
            quoted = pc.binary_join_element_wise("'", column, "")
            column = pc.if_else(formula, quoted.cast(column.type), column)
        columns.append(column)
    marks = pc.match_substring_regex(pa.array(table.column_names, pa.string()), FORMULA).to_pylist()
    names = [f"'{name}" if mark else name for name, mark in zip(table.column_names, marks, strict=True)]
    return pa.Table.from_arrays(columns, names), changed + sum(marks)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a column to a type that CSV can hold."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text(column.cast(kind.value_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _each(column, _base64)
    if pa.types.is_nested(kind):
        return _each(column, lambda value: json.dumps(value, default=plain, ensure_ascii=False))
    return column


def _each(column: pa.ChunkedArray, write: Any) -> pa.ChunkedArray:
    values = [None if value is None else write(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def plain(value: Any) -> str:
    """Return a value that JSON has no type for as text; bytes become base64."""
    return _base64(value) if isinstance(value, bytes) else str(value)
