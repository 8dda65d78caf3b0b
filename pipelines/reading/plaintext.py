"""Captions from plain text, one a line. An empty line is no caption: nobody writes one to mean the empty text."""

from __future__ import annotations

import pyarrow as pa

from pipelines.configuration.config import Captions
from pipelines.reading.files import File
from pipelines.reading.slices import Malformed, Slice, chunks, cut, lines, numbered, table_of


def columns(file: File, captions: Captions) -> list[str]:
    """Return no names: text has no columns."""
    return []


def check(file: File, captions: Captions) -> None:
    next(chunks(file), None)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    return cut(file, (size for size, _ in lines(file)))


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    rows, malformed = [], []
    for row, line in numbered(part, start, stop):
        if isinstance(line, Malformed):
            malformed.append(line)
        elif not line:
            malformed.append(Malformed(row, "empty_line", "an empty line; expected a caption"))
        else:
            rows.append((line, row, None, None, None))
    return table_of(rows), malformed
