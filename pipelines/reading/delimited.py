"""Read captions from CSV and TSV files with a header line. Quoted fields may contain newlines.

A row ends where the `csv` module ends a record, so that counting and reading interpret every quote in the same way.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File
from pipelines.reading.imagefolder import key_column
from pipelines.reading.slices import (
    BYTE_ORDER_MARK,
    LONGEST,
    UNREADABLE,
    Malformed,
    Slice,
    chunks,
    cut,
    lines,
    reason,
    require,
    table_of,
    too_long,
    without_mark,
)


def columns(file: File, captions: Captions) -> list[str]:
    """Return the column names in the header line."""
    return _names(file, captions)[1]


def check(file: File, captions: Captions) -> None:
    """Raise UsageError if the header line lacks a configured column."""
    _header(file, captions)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return the slices of a file, and why the rest of it cannot be read, or None.

    Raises:
        UsageError: The header line lacks a configured column.
    """
    try:
        begin, sizes = spans(file, captions)
        return cut(file, sizes, begin)
    except UNREADABLE as error:
        return [], reason(error)


def spans(file: File, captions: Captions) -> tuple[int, Iterator[int]]:
    """Return the byte where the first row begins, and the size of each row in bytes."""
    begin, _ = _header(file, captions)
    return begin, (size for size, _ in _records(file, begin, delimiter(file, captions)))


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read rows [start, stop) of a slice.

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UsageError: The header line lacks a configured column.
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    _, names = _header(part.file, captions)
    wanted = (captions.caption, key_column(part.file, captions), captions.url or "url", "status")
    at_caption, *others = (names.index(name) if name in names else None for name in wanted)
    assert at_caption is not None
    rows, malformed = [], []
    for at, (_, fields) in enumerate(islice(_records(part.file, part.place[0], delimiter(part.file, captions)), stop)):
        if at < start:
            continue
        row = part.first + at
        if fields is None:
            malformed.append(too_long(row))
        elif isinstance(fields, str):
            malformed.append(Malformed(row, "malformed", fields))
        elif not fields:
            malformed.append(Malformed(row, "empty_line", "an empty line; expected a row"))
        elif len(fields) > len(names):
            expected = f"{len(fields)} fields; expected {len(names)}: {', '.join(names)}"
            malformed.append(Malformed(row, "malformed", expected[:300]))
        else:
            # Fill the columns that a short row lacks with nulls, as pandas does.
            padded: list[str | None] = [*fields, *[None] * (len(names) - len(fields))]
            caption = padded[at_caption]
            key, url, status = (None if other is None else _text(padded[other]) for other in others)
            rows.append((None if caption is None else caption.encode("latin-1"), row, key, url, status))
    return table_of(rows), malformed


def _header(file: File, captions: Captions) -> tuple[int, list[str]]:
    """Return the same as `_names`. Raise UsageError if a configured column is missing."""
    begin, names = _names(file, captions)
    require(captions.caption, names, file.uri, "captions.caption")
    for name, option in ((captions.key, "captions.key"), (captions.url, "captions.url")):
        if name is not None:
            require(name, names, file.uri, option)
    return begin, names


def _names(file: File, captions: Captions) -> tuple[int, list[str]]:
    """Return the byte where the first row begins, and the column names."""
    mark = len(BYTE_ORDER_MARK) if next(chunks(file), b"").startswith(BYTE_ORDER_MARK) else 0
    size, fields = next(_records(file, mark, delimiter(file, captions)), (0, []))
    if not isinstance(fields, list):
        raise csv.Error("the first line is no list of names")
    return mark + size, [_text(name) or "" for name in fields]


def _records(file: File, start: int, delimiter: str) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield (size in bytes, fields) per record.

    For a malformed record the reason takes the place of the fields, and for a record that is too long, None. Fields are
    decoded as Latin-1, which maps every byte to one letter and back.

    Raises:
        csv.Error: The quote of a field is never closed.
    """
    taken, long = 0, False

    def feed() -> Iterator[str]:
        nonlocal taken, long
        for size, line in lines(file, start):
            taken += size
            long |= line is None
            yield "\n" if line is None else line.decode("latin-1") + "\n"

    csv.field_size_limit(LONGEST)
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        before = taken
        try:
            fields: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if taken - before > LONGEST and not long:
                raise csv.Error(f"a field of more than {LONGEST:,} bytes: its quote is never closed") from None
            fields = f"broken CSV: {error}"
        yield taken - before, None if long else fields
        long = False


def delimiter(file: File, captions: Captions) -> str:
    """Return the delimiter of a file: the configured one, a tab for .tsv, else the one found in the header line."""
    if captions.delimiter is not None:
        return captions.delimiter
    if ".tsv" in file.name:
        return "\t"
    _, line = next(lines(file), (0, b""))
    header = without_mark(line or b"").decode("latin-1")
    names = next(csv.reader([header]), [])
    if captions.caption in names or len(names) > 1:
        return ","
    try:
        return csv.Sniffer().sniff(header, ";\t|").delimiter
    except csv.Error:
        return ","


def _text(field: str | None) -> str | None:
    return None if field is None else field.encode("latin-1").decode("utf-8", "replace")
