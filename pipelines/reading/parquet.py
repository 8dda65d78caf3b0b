"""Read captions from a Parquet column of text or of lists of text. Slices consist of whole row groups."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.errors import UsageError
from audit.record.filesystem import open_file
from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File
from pipelines.reading.imagefolder import key_column
from pipelines.reading.slices import RAW, SLICE_ROWS, UNREADABLE, Malformed, Slice, reason, require


def columns(file: File, captions: Captions) -> list[str]:
    """Return the names of the columns of a file."""
    with open_file(file.uri) as source:
        return pq.read_schema(source).names


def check(file: File, captions: Captions) -> None:
    """Raise UsageError if a configured column is missing, or if the captions are not text."""
    with open_file(file.uri) as source:
        schema = pq.read_schema(source)
    require(captions.caption, schema.names, file.uri, "captions.caption")
    kind = schema.field(captions.caption).type
    inner = kind.value_type if _is_list(kind) or pa.types.is_dictionary(kind) else kind
    if not any(str(inner).removeprefix("large_").removesuffix("_view") == name for name in ("string", "binary")):
        raise UsageError(f"column {captions.caption} is {kind}, not text", where=file.uri, hint="Set captions.caption.")
    for name, option in ((captions.key, "captions.key"), (captions.url, "captions.url")):
        if name is not None:
            require(name, schema.names, file.uri, option)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return the slices of a file, and why the rest of it cannot be read, or None.

    Raises:
        UsageError: As for `check`.
    """
    try:
        check(file, captions)
        with open_file(file.uri) as source:
            metadata = pq.read_metadata(source)
    except UNREADABLE as error:
        return [], reason(error)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return [Slice(file, first, count, groups) for groups, first, count in _consecutive(sizes)], None


def groups(part: Slice) -> list[Slice]:
    """Split a slice into one slice per row group."""
    with open_file(part.file.uri) as source:
        metadata = pq.read_metadata(source)
    first, found = part.first, []
    for group in part.place:
        found.append(Slice(part.file, first, metadata.row_group(group).num_rows, (group,)))
        first += metadata.row_group(group).num_rows
    return found


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read rows [start, stop) of a slice.

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    with open_file(part.file.uri) as source:
        parquet = pq.ParquetFile(source)
        there = parquet.schema_arrow.names
        key = key_column(part.file, captions)
        names = {
            "caption": captions.caption,
            "key": key if key in there else None,
            "url": captions.url or ("url" if "url" in there else None),
            "status": "status" if "status" in there else None,
        }
        wanted = list(dict.fromkeys(name for name in names.values() if name))
        table = parquet.read_row_groups(list(part.place), columns=wanted).slice(start, stop - start)
    columns = {"row": pa.array(range(part.first + start, part.first + stop), pa.int64())}
    for field, name in names.items():
        columns[field] = pa.nulls(len(table), pa.string()) if name is None else _plain(table[name], field)
    if names["status"]:
        columns["status"] = pc.fill_null(columns["status"], "null")
    return pa.table([columns[field.name] for field in RAW], names=RAW.names), []


def _plain(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = RAW.field(field).type
    return column.cast(pa.list_(kind) if _is_list(column.type) else kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _consecutive(sizes: Sequence[int]) -> list[tuple[tuple[int, ...], int, int]]:
    """Join consecutive row groups as long as they have at most SLICE_ROWS rows together.

    Args:
        sizes: The number of rows in each row group.

    Returns:
        One (row groups, first row, number of rows) per joined group. A row group with more rows stays on its own.
    """
    found: list[tuple[tuple[int, ...], int, int]] = []
    first = 0
    for index, size in enumerate(sizes):
        if size and found and found[-1][2] + size <= SLICE_ROWS:
            groups, at, count = found[-1]
            found[-1] = ((*groups, index), at, count + size)
        elif size:
            found.append(((index,), first, size))
        first += size
    return found
