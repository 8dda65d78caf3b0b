"""Read captions from plain text, one per line.

An empty line is not a caption: nobody writes one to mean the empty text.
"""

from __future__ import annotations

import pyarrow as pa

from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File
from pipelines.reading.slices import Malformed, Slice, chunks, cut, lines, numbered, table_of


def columns(file: File, captions: Captions) -> list[str]:
    """Return an empty list, because text has no columns."""
    return []


def check(file: File, captions: Captions) -> None:
    """Read the beginning of a file, which fails if the file cannot be read or is in UTF-16 or UTF-32."""
    next(chunks(file), None)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return the slices of a file, and why the rest of it cannot be read, or None."""
    return cut(file, (size for size, _ in lines(file)))


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read lines [start, stop) of a slice.

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    rows, malformed = [], []
    for row, line in numbered(part, start, stop):
        if isinstance(line, Malformed):
            malformed.append(line)
        elif not line:
            malformed.append(Malformed(row, "empty_line", "an empty line; expected a caption"))
        else:
            rows.append((line, row, None, None, None))
    return table_of(rows), malformed
