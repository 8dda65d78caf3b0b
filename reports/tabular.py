"""Write a table in the format that the suffix of the file name sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from audit.errors import UsageError

SUFFIXES = (".parquet", ".csv", ".jsonl")


class Writer(Protocol):
    """Write record batches to a file, which is complete once it is closed."""

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append the rows of a batch."""

    def close(self) -> None:
        """Complete the file."""


def check_suffix(path: str | Path, known: Sequence[str] = SUFFIXES) -> str:
    """Return the suffix of a file in lower case. Raises UsageError if it is not a known format."""
    suffix = Path(str(path)).suffix.lower()
    if suffix in known:
        return suffix
    what = f"cannot write the format {suffix}" if suffix else "the file name has no suffix, so its format is unknown"
    raise UsageError(what, where=str(path), hint=f"Give a file name that ends in {' or '.join(known)}.")


def open_writer(suffix: str, sink: pa.NativeFile, layout: pa.Schema) -> Writer:
    """Open a writer for a format.

    Args:
        suffix: The format, one of SUFFIXES.
        sink: The open file to write to.
        layout: The schema of the batches. Only Parquet keeps its metadata.

    Returns:
        A writer. Close it to complete the file.
    """
    if suffix == ".csv":
        return pacsv.CSVWriter(sink, layout)
    if suffix == ".jsonl":
        return _JsonLines(sink)
    return pq.ParquetWriter(sink, layout, compression="zstd")


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table of numbers and text to a local file.

    Raises UsageError for an unknown suffix and OSError if the file cannot be written.
    """
    suffix = check_suffix(path)
    with pa.OSFile(str(path), "wb") as sink:
        writer = open_writer(suffix, sink, table.schema)
        for batch in table.to_batches():
            writer.write_batch(batch)
        writer.close()


class _JsonLines:
    def __init__(self, sink: pa.NativeFile) -> None:
        self._sink = sink

    def write_batch(self, batch: pa.RecordBatch) -> None:
        lines: list[dict[str, Any]] = batch.to_pylist()
        self._sink.write("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())

    def close(self) -> None:
        """Do nothing, because whoever opened the sink closes it."""
