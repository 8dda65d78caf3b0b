"""Store the parts of a run: one Parquet file per shard and table, written atomically. An existing part is finished."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from audit import schema
from audit.errors import AuditError, first_line
from audit.record.filesystem import open_filesystem, write_file, writing
from audit.record.parquet import parquet_dataset

if TYPE_CHECKING:
    import pyarrow.dataset as pads

Tables = dict[str, pa.Table]
_CHUNK = 1 << 22
# Row groups are small: a shard reads its slice of a part, or its range of a sorted part, and little else.
GROUP_ROWS = 1 << 13
# Row groups of vectors, which are large.
VECTOR_ROWS = 1 << 9
_TOGETHER = 16

# Folder in which the writers of a run announce themselves; it is not part of the run (`pipelines.engine.owner`).
OWNERS = "_owners"
# Folder of the working tables: the table `_keys` is stored in RUN/_work/keys.
WORK = "_work"


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of `source`; `name` is the name of the part that they are written to."""

    name: str
    source: Any
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def halves(self) -> list[Shard]:
        """Split the shard in two, at its middle row."""
        middle = (self.start + self.stop) // 2
        return [
            Shard(self.name, self.source, self.start, middle),
            Shard(self.name, self.source, middle, self.stop),
        ]


def slices(name: str, source: Any, rows: int, size: int) -> list[Shard]:
    """Split rows into contiguous shards of at most `size` rows, named `name`-00000, `name`-00001 and so on.

    Args:
        name: Prefix of the names; may be empty.
        source: Source of the rows.
        rows: Number of rows.
        size: Largest number of rows per shard.
    """
    prefix = f"{name}-" if name else ""
    return [
        Shard(f"{prefix}{index:05d}", source, start, min(start + size, rows))
        for index, start in enumerate(range(0, rows, size))
    ]


class Ledger:
    """The tables under one URI.

    Tables whose names start with `_` are working tables. They lie under WORK, are not part of the data contract, and
    are removed when the run is finished.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.root = open_filesystem(uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (self.uri,)

    def path(self, *parts: str) -> str:
        """Return the path of a file or folder of the run in its file system."""
        return posixpath.join(self.root, *parts)

    def folder(self, table: str) -> str:
        """Return the path of the folder of a table."""
        return self.path(WORK, table[1:]) if table.startswith("_") else self.path(table)

    def part(self, table: str, name: str) -> str:
        """Return the path of a part."""
        return posixpath.join(self.folder(table), f"{name}.parquet")

    def parts(self, table: str) -> list[str]:
        """List the names of the finished parts of a table, in order."""
        return [info.base_name.removesuffix(".parquet") for info in self._files(table)]

    def rows(self, table: str, name: str) -> int:
        """Count the rows of a part without reading them."""
        return self._open(table, name).metadata.num_rows

    def read(self, table: str, name: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, or all parts in order.

        Args:
            table: Name of the table.
            name: Name of the part; None for all.
            columns: Columns to read; None for all.

        Raises:
            KeyError: The table has no parts, and hence no schema.
            AuditError: A part is damaged.
        """
        if name is not None:
            return self._open(table, name).read(columns=columns)
        parts = self.parts(table)
        if not parts:
            raise KeyError(table)
        return _concat([self._open(table, part).read(columns=columns) for part in parts])

    def slice(self, table: str, name: str, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read rows [start, stop) of a part; only the row groups that hold them are read.

        Args:
            table: Name of the table.
            name: Name of the part.
            start: First row.
            stop: Row after the last one.
            columns: Columns to read; None for all.
        """
        part = self._open(table, name)
        ends = np.cumsum([part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)])
        groups = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop, "left")) + 1)
        wanted = [group for group in groups if group < part.num_row_groups]
        before = int(ends[wanted[0] - 1]) if wanted and wanted[0] else 0
        return part.read_row_groups(wanted, columns=columns).slice(start - before, stop - start)

    def between(self, table: str, column: str, low: int, high: int) -> pa.Table:
        """Read the rows of all parts with low <= column < high, in order.

        Args:
            table: Name of the table.
            column: An integer column that the parts are sorted by.
            low: Smallest value.
            high: Value after the largest one.
        """
        return self.dataset(table).to_table(filter=(pc.field(column) >= low) & (pc.field(column) < high))

    def dataset(self, table: str, layout: pa.Schema | None = None) -> pads.Dataset:
        """Return all parts of a table as a dataset to scan; if there are none, an empty one with the given layout."""
        return parquet_dataset(self.filesystem, self._files(table), layout)

    def ranged(self, table: str, column: str, low: int, high: int) -> Iterator[pa.Table]:
        """Read rows as `between` does, but a few parts at a time.

        A dataset of thousands of files would fill the memory with their metadata.

        Args:
            table: Name of the table.
            column: An integer column that the parts are sorted by.
            low: Smallest value.
            high: Value after the largest one.
        """
        files = self._files(table)
        for start in range(0, len(files), _TOGETHER):
            found = parquet_dataset(self.filesystem, files[start : start + _TOGETHER])
            yield found.to_table(filter=(pc.field(column) >= low) & (pc.field(column) < high))

    def each(self, table: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Yield (name, content) of each part of a table, in order."""
        for name in self.parts(table):
            yield name, self.read(table, name, columns)

    def commit(self, name: str, tables: Tables) -> dict[str, int]:
        """Write a shard's tables: `errors` first, and the first of `tables` last, because it marks the shard as done.

        A part of `errors` that an earlier attempt left is removed. If all parts of the shard exist, nothing is written,
        so a worker that was given up but writes after all changes nothing.

        Args:
            name: Name of the shard.
            tables: Content by table. The part of `errors` is named after the first table.

        Returns:
            Number of rows by table.
        """
        first, *others = [table for table in tables if table != "errors"]
        errors, part = tables.get("errors"), f"{first.lstrip('_')}-{name}"
        if all(self._exists(table, name) for table in (first, *others)):
            counts = {table: self.rows(table, name) for table in (*others, first)}
            return counts | {"errors": self.rows("errors", part) if self._exists("errors", part) else 0}
        if errors is not None and len(errors):
            self.write("errors", part, errors)
        else:
            self.remove("errors", part)
        for table in (*others, first):
            self.write(table, name, tables[table])
        return {table: len(content) for table, content in tables.items()}

    def write(self, table: str, name: str, content: pa.Table) -> None:
        """Write one part.

        Args:
            table: Name of the table.
            name: Name of the part.
            content: The rows.

        Raises:
            AuditError: The disk is full.
        """
        buffer = pa.BufferOutputStream()
        pq.write_table(content, buffer, compression="zstd", **_encoding(content.schema))
        write_file(self.filesystem, self.part(table, name), buffer.getvalue())

    def take(self, source: Ledger, table: str, name: str) -> None:
        """Copy a part from another ledger byte for byte.

        Args:
            source: The other ledger.
            table: Name of the table.
            name: Name of the part.
        """
        path = source.part(table, name)
        with source.filesystem.open_input_file(path) as content:
            write_file(self.filesystem, self.part(table, name), content.read_buffer())

    def put(self, file: Path, table: str) -> None:
        """Copy a local file next to a table's parts, under its own name.

        The file is not a part. A part that is written after it must mark it as complete.
        """
        with (
            file.open("rb") as content,
            writing(self.filesystem, posixpath.join(self.folder(table), file.name)) as sink,
        ):
            shutil.copyfileobj(content, sink, _CHUNK)

    @contextmanager
    def local(self, table: str, file: str) -> Iterator[str]:
        """Give a local path of a file stored with `put`; a remote file is downloaded, and deleted afterwards."""
        stored = posixpath.join(self.folder(table), file)
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            yield stored
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file)
            with self.filesystem.open_input_stream(stored) as content, path.open("wb") as sink:
                shutil.copyfileobj(content, sink, _CHUNK)
            yield str(path)

    def remove(self, table: str, name: str) -> None:
        """Delete a part if it exists."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self.part(table, name))

    def sweep(self) -> None:
        """Delete temporary files left by a killed run."""
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.base_name.endswith(".tmp") and f"/{OWNERS}/" not in info.path:
                self.filesystem.delete_file(info.path)

    def remove_work(self) -> None:
        """Delete all working tables."""
        path = self.path(WORK)
        if self.filesystem.get_file_info(path).type != pafs.FileType.NotFound:
            self.filesystem.delete_dir(path)

    def holds_anything(self) -> bool:
        """Tell whether the folder of the run holds anything besides announcements of writers."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        return any(info.base_name != OWNERS for info in self.filesystem.get_file_info(selector))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of the run atomically."""
        write_file(self.filesystem, self.path(name), content)

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file of the run; return None if it does not exist."""
        if self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.File:
            return None
        with self.filesystem.open_input_stream(self.path(name)) as source:
            return source.read()

    def _exists(self, table: str, name: str) -> bool:
        return self.filesystem.get_file_info(self.part(table, name)).type == pafs.FileType.File

    def _files(self, table: str) -> list[pafs.FileInfo]:
        """List the files of the finished parts of a table, in order of their names."""
        selector = pafs.FileSelector(self.folder(table), allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if info.extension == "parquet"]
        return sorted(found, key=lambda info: info.base_name)

    def check(self, table: str) -> None:
        """Raise AuditError for the first damaged part of a table."""
        for name in self.parts(table):
            self._open(table, name)

    def _open(self, table: str, name: str) -> pq.ParquetFile:
        path = self.part(table, name)
        try:
            # Columns next to each other are one request to an object store.
            return pq.ParquetFile(self.filesystem.open_input_file(path), pre_buffer=True)
        except pa.ArrowInvalid as error:
            raise damaged(path, error) from error


def damaged(path: str, error: Exception) -> AuditError:
    """Return the error for a part that is not a Parquet file."""
    hint = "Restore it from a copy, or audit again with another --out; `crossaudit check` names every damaged part."
    return AuditError(f"this part of the run is damaged: {first_line(error)}", where=path, hint=hint)


def _encoding(layout: pa.Schema) -> dict[str, Any]:
    """Return options for encoding a table: Parquet's defaults, except for vectors of float16.

    A dictionary of such vectors would be larger than the vectors and take four times as long to read.
    """
    halves = [field.name for field in layout if pa.types.is_fixed_size_list(field.type)]
    if not halves:
        return {"row_group_size": GROUP_ROWS}
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in halves}
    plain = [name for name in layout.names if name not in halves]
    return {"row_group_size": VECTOR_ROWS, "use_dictionary": plain, "column_encoding": split}


def errors_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Make rows of the table `errors`; fields that a row omits are null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema.ERRORS)


def concat(pieces: Sequence[Tables]) -> Tables:
    """Concatenate the pieces of one shard, in order, as if it had been processed as a whole."""
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return {name: _concat([piece[name] for piece in pieces if name in piece]) for name in names}


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables with the columns and metadata of the widest one; lost rows lack detector columns."""
    tables = [table for table in tables if len(table)] or tables[:1]
    widest = max((table.schema for table in tables), key=len)
    return pa.concat_tables([_fitted(table, widest) for table in tables])


def _fitted(table: pa.Table, layout: pa.Schema) -> pa.Table:
    missing = pa.schema([field for field in layout if field.name not in table.schema.names])
    for field in missing:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(layout.names).cast(layout)
