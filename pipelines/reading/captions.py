"""Captions from Parquet files: columns, shards of row groups, and every row accounted for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.errors import AuditError, UsageError
from pipelines.config import Captions
from pipelines.ledger import Shard
from pipelines.reading.files import File, open_file

# Consecutive row groups are worked together up to so many rows.
INPUT_ROWS = 1 << 18
# What img2dataset writes into `status` of a row whose image it got.
DOWNLOADED = "success"


@dataclass(frozen=True)
class Columns:
    """The columns of one file that are read; a missing optional one is None."""

    caption: str
    key: str | None
    url: str | None
    status: str | None

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.caption, self.key, self.url, self.status) if name))


@dataclass(frozen=True)
class Slice:
    """Consecutive row groups of a file; `first` is the number of their first row in it."""

    file: File
    groups: tuple[int, ...]
    first: int
    columns: Columns


def plan(files: Sequence[File], captions: Captions) -> tuple[list[Shard], dict[str, int], list[dict]]:
    """(input shards, rows by file URI, error rows of the files that cannot be read).

    Raises UsageError if a file lacks a configured column, AuditError if no file can be read or none has a row.
    """
    shards: list[Shard] = []
    rows: dict[str, int] = {}
    errors: list[dict] = []
    for file in files:
        try:
            with open_file(file.uri) as source:
                parquet = pq.ParquetFile(source)
                sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
                columns = _columns(parquet.schema_arrow, captions, file.uri)
        except (pa.ArrowException, OSError) as error:
            errors.append(unreadable(file, error))
            continue
        rows[file.uri] = sum(sizes)
        for groups, first, count in _slices(sizes):
            shards.append(Shard(f"{len(shards):05d}", Slice(file, groups, first, columns), 0, count))
    if not rows:
        raise AuditError(
            f"none of {len(files)} files can be read as Parquet", where=files[0].uri, do=errors[0]["message"]
        )
    if not shards:
        raise AuditError("the data set has no rows", where=files[0].uri, do="Check `captions` in the configuration.")
    return shards, rows, errors


def unreadable(file: File, error: Exception, row: int | None = None, rows: int | None = None) -> dict:
    message = " ".join(str(error).split())
    where = {"stage": "ingest", "file": file.name, "row": row, "rows": rows}
    return where | {"kind": "unreadable_file", "message": f"{message[:300]}"}


def read(part: Slice, start: int, stop: int) -> tuple[pa.Table, list[dict]]:
    """Rows [start, stop) of a slice: (table of caption, row, key, url; error rows of what has no caption).

    Every row is in exactly one of the two: by itself in the table, counted in the errors' `rows`.
    """
    try:
        with open_file(part.file.uri) as source:
            table = pq.ParquetFile(source).read_row_groups(list(part.groups), columns=part.columns.names())
    except (pa.ArrowException, OSError) as error:
        return _empty(), [unreadable(part.file, error, part.first + start, stop - start)]
    table = table.slice(start, stop - start)
    numbers = pa.array(range(part.first + start, part.first + stop), pa.int64())
    table = pa.table(
        {
            "caption": _plain(table[part.columns.caption], pa.binary()),
            "row": numbers,
            "key": _text(table, part.columns.key),
            "url": _text(table, part.columns.url),
            "status": _text(table, part.columns.status),
        }
    )
    errors: list[dict] = []
    if part.columns.status:
        downloaded = pc.fill_null(pc.equal(table["status"], DOWNLOADED), False)
        errors += _not_downloaded(part.file, table.filter(pc.invert(downloaded)))
        table = table.filter(downloaded)
    table, rejected = _decode(table, part.file.name)
    return table.drop_columns("status"), errors + rejected


def read_null_captions(path: str, column: str) -> list[str]:
    """The distinct null captions of a text file, one a line, or of a Parquet column, in order."""
    if not path.endswith(".parquet"):
        with open_file(path) as source:
            try:
                lines = source.read().decode("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise AuditError(f"is not UTF-8: {error}", where=path, do="Save the captions as UTF-8.") from error
        return list(dict.fromkeys(line.rstrip("\r") for line in lines if line.strip()))
    with open_file(path) as source:
        try:
            parquet = pq.ParquetFile(source)
            _require(column, parquet.schema_arrow, path, "calibration.column")
            values = parquet.read(columns=[column])[column].to_pylist()
        except pa.ArrowException as error:
            raise AuditError(f"cannot be read: {error}", where=path) from error
    return list(dict.fromkeys(value for value in values if value is not None))


def spread(captions: list[str], most: int) -> list[str]:
    """At most so many of them, evenly over the list."""
    return captions[:: -(-len(captions) // most)] if len(captions) > most else captions


def _columns(schema: pa.Schema, captions: Captions, where: str) -> Columns:
    _require(captions.caption, schema, where, "captions.caption")
    kind = schema.field(captions.caption).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)) and not (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    ):
        raise UsageError(f"column {captions.caption} is {kind}, not text", where=where, do="Set captions.caption.")
    for name, option in ((captions.key, "captions.key"), (captions.url, "captions.url")):
        if name is not None:
            _require(name, schema, where, option)
    return Columns(
        caption=captions.caption,
        key=captions.key or ("key" if "key" in schema.names else None),
        url=captions.url or ("url" if "url" in schema.names else None),
        status="status" if "status" in schema.names else None,
    )


def _require(name: str, schema: pa.Schema, where: str, option: str) -> None:
    if name in schema.names:
        return
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in schema.names], n=1, cutoff=0.5)
    nearest = next((column for column in schema.names if near and column.lower() == near[0]), None)
    raise UsageError(
        f"no column {name!r}; there is {', '.join(schema.names)}",
        where=where,
        do=f"Did you mean {option}: {nearest}?" if nearest else f"Set {option} in the configuration.",
    )


def _slices(sizes: Sequence[int]) -> list[tuple[tuple[int, ...], int, int]]:
    """(row groups, first row, rows): consecutive groups of up to INPUT_ROWS rows, one at least."""
    found: list[tuple[tuple[int, ...], int, int]] = []
    first = 0
    for index, size in enumerate(sizes):
        if size and found and found[-1][2] + size <= INPUT_ROWS:
            groups, at, count = found[-1]
            found[-1] = ((*groups, index), at, count + size)
        elif size:
            found.append(((index,), first, size))
        first += size
    return found


def _plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(kind)


def _text(table: pa.Table, name: str | None) -> pa.ChunkedArray | pa.Array:
    return pa.nulls(len(table), pa.string()) if name is None else _plain(table[name], pa.string())


def _not_downloaded(file: File, table: pa.Table) -> list[dict]:
    if not len(table):
        return []
    counts = pc.value_counts(pc.fill_null(table["status"], "null")).to_pylist()
    reasons = ", ".join(f"{item['counts']} {item['values']}" for item in sorted(counts, key=lambda x: x["values"]))
    where = {"stage": "ingest", "file": file.name, "row": None, "rows": len(table)}
    return [where | {"kind": "not_downloaded", "message": f"status: {reasons}"}]


def _decode(table: pa.Table, file: str) -> tuple[pa.Table, list[dict]]:
    """The rows whose caption is text, as strings, and an error row for each of the others."""
    values = table["caption"].combine_chunks()
    valid, errors = [], []
    for value, row in zip(values.to_pylist(), table["row"].to_pylist(), strict=True):
        reason = _reason(value)
        valid.append(reason is None)
        if reason:
            kind, message = reason
            errors.append({"stage": "ingest", "file": file, "row": row, "rows": 1, "kind": kind, "message": message})
    kept = table.filter(pa.array(valid, pa.bool_()))
    return kept.set_column(0, "caption", kept["caption"].cast(pa.string())), errors


def _reason(value: bytes | None) -> tuple[str, str] | None:
    if value is None:
        return "null_caption", "the caption is null"
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return "invalid_utf8", f"the caption is not UTF-8: byte {error.start} ({error.reason})"
    return None


def _empty() -> pa.Table:
    fields = [("caption", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("url", pa.string())]
    return pa.schema(fields).empty_table()
