"""Cut files of captions into slices, stream their lines, and build tables of raw rows, for every format."""

from __future__ import annotations

import csv
import difflib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from audit.errors import UsageError
from audit.record.filesystem import open_file
from pipelines.reading.files import File

# A slice ends once it has this many rows or bytes, which bounds how much of a large file a worker holds.
SLICE_ROWS = 1 << 19
SLICE_BYTES = 1 << 28
# Maximum length of a caption in bytes. Longer lines are not held in memory.
LONGEST = 1 << 20
_CHUNK = 1 << 16
# Number of rows that are read to check that the configured column exists.
HEAD = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
UNREADABLE = (pa.ArrowException, OSError, EOFError, tarfile.TarError, csv.Error)

# The rows that a format reads. `caption` may be a list of captions; `status` is null if the file has no such column.
RAW = pa.schema(
    [
        ("caption", pa.binary()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
    ]
)


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a file.

    Attributes:
        file: The file.
        first: Number of the first row in the file.
        rows: Number of rows.
        place: The row groups of a Parquet file; (start, stop) in bytes for other files.
    """

    file: File
    first: int
    rows: int
    place: tuple[int, ...]


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be read.

    Attributes:
        row: Number of the row in the file.
        kind: The `kind` of the error.
        message: What is wrong, and what was expected.
    """

    row: int
    kind: str
    message: str


def reason(error: Exception) -> str:
    """Return the message of an exception on one line of at most 300 characters, or else its class name."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def require(name: str, names: Sequence[str], where: str, option: str) -> None:
    """Check that a file has a configured column.

    Args:
        name: The column.
        names: The columns of the file.
        where: The file, for the error.
        option: The configuration key that names the column.

    Raises:
        UsageError: The column is missing. The hint names the most similar column.
    """
    if name in names:
        return
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in names], n=1, cutoff=0.5)
    nearest = next((column for column in names if near and column.lower() == near[0]), None)
    raise UsageError(
        f"no column {name!r}; there is {', '.join(names)}",
        where=where,
        hint=f"Did you mean {option}: {nearest}?" if nearest else f"Set {option} in the configuration.",
    )


def cut(file: File, sizes: Iterable[int], start: int = 0) -> tuple[list[Slice], str | None]:
    """Cut a file into slices of at most SLICE_ROWS rows, each of which ends once it has SLICE_BYTES bytes.

    Args:
        file: The file.
        sizes: The size of each row in bytes.
        start: The byte where the first row begins.

    Returns:
        The slices, and the reason if `sizes` fails before the end of the file, or None.
    """
    found: list[Slice] = []
    first, rows, at = 0, 0, start
    problem = None
    try:
        for size in sizes:
            rows, at = rows + 1, at + size
            if rows == SLICE_ROWS or at - start >= SLICE_BYTES:
                found.append(Slice(file, first, rows, (start, at)))
                first, rows, start = first + rows, 0, at
    except UNREADABLE as error:
        problem = reason(error)
    return [*found, Slice(file, first, rows, (start, at))] if rows else found, problem


def chunks(file: File, start: int = 0) -> Iterator[bytes]:
    """Yield the content of a file from byte `start` on, decompressed if its suffix says that it is compressed.

    In a compressed file, `start` counts decompressed bytes. The content comes in the same chunks for every `start`, so
    that a truncated file ends at the same byte for every reader.

    Raises:
        OSError: The content begins like UTF-16 or UTF-32.
    """
    codec = next((codec for suffix, codec in COMPRESSED.items() if file.name.endswith(suffix)), None)
    first = start == 0
    with open_file(file.uri) as source:
        if codec is None:
            source.seek(start)
            start = 0
        buffered = pa.BufferedInputStream(source, LONGEST)
        content = buffered if codec is None else pa.CompressedInputStream(buffered, codec)
        while chunk := content.read(_CHUNK):
            if first:
                refuse_other_encodings(chunk)
            first = False
            if start < len(chunk):
                yield chunk[start:]
            start = max(0, start - len(chunk))


def refuse_other_encodings(beginning: bytes) -> None:
    """Raise OSError that names the encoding if text begins like UTF-16 or UTF-32."""
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    encoding = next((name for mark, name in marks.items() if beginning.startswith(mark)), None)
    sides = beginning[:256:2], beginning[1:256:2]
    # In UTF-16, every second byte of Latin text is a NUL, and no other byte is.
    counts = sorted(side.count(0) for side in sides)
    if encoding is None and len(sides[1]) > 7 and counts in ([0, len(side)] for side in sides):
        encoding = "UTF-16 without a byte-order mark"
    if encoding is not None:
        raise OSError(f"its encoding is {encoding}, not UTF-8: convert it (iconv -t UTF-8)")


def lines(file: File, start: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """Yield (size in bytes, line without its newline) per line, from byte `start` on.

    None takes the place of a line that is longer than LONGEST.
    """
    rest, dropped = b"", 0
    for chunk in chunks(file, start):
        *whole, last = chunk.split(b"\n")
        for end in whole:
            line = rest + end if rest else end
            yield dropped + len(line) + 1, None if dropped or len(line) > LONGEST else line
            rest, dropped = b"", 0
        rest += last
        if len(rest) > LONGEST:
            rest, dropped = b"", dropped + len(rest)
    if rest or dropped:
        yield dropped + len(rest), None if dropped else rest


def numbered(part: Slice, start: int, stop: int) -> Iterator[tuple[int, bytes | Malformed]]:
    """Yield the lines [start, stop) of a slice.

    Args:
        part: The slice.
        start: The first line to read, counted from the start of the slice.
        stop: The line after the last one to read.

    Yields:
        The number of the line in the file, and its content without byte-order mark and line end, or Malformed.
    """
    for at, (_, line) in enumerate(islice(lines(part.file, part.place[0]), stop)):
        if at < start:
            continue
        row = part.first + at
        if line is None:
            yield row, too_long(row)
            continue
        line = line.removesuffix(b"\r")
        yield row, without_mark(line) if row == 0 else line


def without_mark(content: bytes) -> bytes:
    """Remove the byte-order mark, if there is one."""
    return content.removeprefix(BYTE_ORDER_MARK)


def too_long(row: int) -> Malformed:
    """Return the error of a row that is longer than LONGEST."""
    return Malformed(row, "too_long", f"longer than {LONGEST:,} bytes: no caption is")


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    """Build a table of schema RAW from (caption, row, key, url, status) per row.

    If the caption of any row is a list, the captions of all rows become lists.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(RAW)
    layout = RAW
    if any(isinstance(caption, list) for caption in columns[0]):
        columns[0] = tuple(caption if isinstance(caption, list) else [caption] for caption in columns[0])
        layout = RAW.set(0, pa.field("caption", pa.list_(pa.binary())))
    arrays = [pa.array(values, field.type) for values, field in zip(columns, layout, strict=True)]
    return pa.table(arrays, schema=layout)
