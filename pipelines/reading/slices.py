"""What the formats of captions have in common: slices of a file, streams of lines, and rows as they were read."""

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

# A slice ends at so many rows or bytes, so that a worker holds no more of a file, however large that is.
SLICE_ROWS = 1 << 19
SLICE_BYTES = 1 << 28
# Nothing longer is a caption, and no line longer is held in memory.
LONGEST = 1 << 20
_CHUNK = 1 << 16
# So many rows are looked at to see whether the configured column is there.
HEAD = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
UNREADABLE = (pa.ArrowException, OSError, EOFError, tarfile.TarError, csv.Error)

# What a format makes of a file. `caption` may be a list of captions; `status` is null where there is no such column.
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
    """Consecutive rows of a file, from number `first` on; `place`: row groups in Parquet, else (start, stop) bytes."""

    file: File
    first: int
    rows: int
    place: tuple[int, ...]


@dataclass(frozen=True)
class Malformed:
    """A row of a file that is none: what was expected."""

    row: int
    kind: str
    message: str


def reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def require(name: str, names: Sequence[str], where: str, option: str) -> None:
    """Raises UsageError if a configured column is not among those that there are."""
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
    """(slices of rows that take `sizes` bytes each, from byte `start` on; why there are no more, or None)."""
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
    """The content of a file from a byte on, unpacked if its name says that it is compressed.

    What is unpacked comes in the same chunks whatever `start`: so a truncated file ends at the same byte for everybody.
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
    """Raises OSError that names the encoding of text that begins like UTF-16 or UTF-32."""
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    encoding = next((name for mark, name in marks.items() if beginning.startswith(mark)), None)
    sides = beginning[:256:2], beginning[1:256:2]
    # Every second byte of Latin letters is a NUL, and no other is.
    counts = sorted(side.count(0) for side in sides)
    if encoding is None and len(sides[1]) > 7 and counts in ([0, len(side)] for side in sides):
        encoding = "UTF-16 without a byte-order mark"
    if encoding is not None:
        raise OSError(f"its encoding is {encoding}, not UTF-8: convert it (iconv -t UTF-8)")


def lines(file: File, start: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """(bytes that it takes, line without its newline; None in place of one longer than LONGEST) from a byte on."""
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
    """(number, content) of the lines [start, stop) of a slice, without byte-order mark and line end."""
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
    return content.removeprefix(BYTE_ORDER_MARK)


def too_long(row: int) -> Malformed:
    return Malformed(row, "too_long", f"longer than {LONGEST:,} bytes: no caption is")


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    """A table RAW of (caption, row, key, url, status); with a list among them, every caption is one."""
    columns = list(zip(*rows, strict=True)) or [()] * len(RAW)
    layout = RAW
    if any(isinstance(caption, list) for caption in columns[0]):
        columns[0] = tuple(caption if isinstance(caption, list) else [caption] for caption in columns[0])
        layout = RAW.set(0, pa.field("caption", pa.list_(pa.binary())))
    arrays = [pa.array(values, field.type) for values, field in zip(columns, layout, strict=True)]
    return pa.table(arrays, schema=layout)
