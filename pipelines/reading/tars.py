"""Read captions from WebDataset tars without unpacking them.

The caption of a sample is in its `.json` member, or else in its `.txt` member. The key of a sample is the stem of its
members, as for its image. The URL and the status come from the `.json` member.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from audit.errors import UsageError
from audit.record.filesystem import open_file
from pipelines.configuration.inputs import Captions
from pipelines.reading import jsonlines
from pipelines.reading.files import File
from pipelines.reading.images import samples
from pipelines.reading.slices import (
    HEAD,
    LONGEST,
    UNREADABLE,
    Malformed,
    Slice,
    cut,
    reason,
    table_of,
    too_long,
    without_mark,
)

Members = dict[str, tarfile.TarInfo]


def check(file: File, captions: Captions) -> None:
    """Raise UsageError if none of the first HEAD samples has a `.txt`, or a `.json` with the configured caption."""
    head, names = _beginning(file)
    if head and not any(members.keys() & {".txt", ".json"} for members in head):
        ask = "A caption is a .txt or a .json beside its image."
        raise UsageError(f"its first {len(head)} samples have no caption", where=file.uri, hint=ask)
    if not any(".txt" in members for members in head):
        jsonlines.check_names(names, file.uri, captions)


def columns(file: File, captions: Captions) -> list[str]:
    """Return the names in the `.json` members of those of the first HEAD samples that have no `.txt`."""
    return _beginning(file)[1]


def _beginning(file: File) -> tuple[list[Members], list[str]]:
    """Return the text members of the first HEAD samples, and the names in the `.json` of those without a `.txt`."""
    with open_file(file.uri) as source, open_file(file.uri) as contents:
        head = [members for _, members, _ in islice(_samples(source), HEAD)]
        items = [_item(contents, members, 0) for members in head if ".txt" not in members and ".json" in members]
    return head, jsonlines.names_of(items)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return the slices of a file, and why the rest of it cannot be read, or None."""
    try:
        with open_file(file.uri) as source:
            return cut(file, _sizes(source))
    except UNREADABLE as error:
        return [], reason(error)


def beginning(file: File, samples: int) -> Slice:
    """Return a slice of the first `samples` samples of a tar, or of all if it has fewer. Raises one of UNREADABLE."""
    with open_file(file.uri) as source:
        sizes = list(islice(_sizes(source), samples))
    return Slice(file, 0, len(sizes), (0, sum(sizes)))


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read samples [start, stop) of a slice.

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    rows, malformed = [], []
    with open_file(part.file.uri) as source, open_file(part.file.uri) as contents:
        source.seek(part.place[0])
        for at, (key, members, _) in enumerate(islice(_samples(source), stop)):
            if at < start:
                continue
            row = part.first + at
            caption, item = _caption(contents, members, row, captions)
            if isinstance(caption, Malformed):
                malformed.append(caption)
            else:
                rows.append((caption, row, key, *jsonlines.source_of(item, captions)))
    return table_of(rows), malformed


def _caption(contents: BinaryIO, members: Members, row: int, captions: Captions) -> tuple[Any, dict[str, Any]]:
    """Return the caption or captions as bytes, or what is wrong; and the object in the `.json`, or an empty one."""
    item = (
        _item(contents, members, row) if ".json" in members else Malformed(row, "no_caption", "neither .txt nor .json")
    )
    found = item if isinstance(item, Malformed) else jsonlines.caption_of(item, row, captions)
    if isinstance(found, Malformed) and ".txt" in members:
        found = _content(contents, members[".txt"], row)
    return found, {} if isinstance(item, Malformed) else item


def _item(contents: BinaryIO, members: Members, row: int) -> dict[str, Any] | Malformed:
    content = _content(contents, members[".json"], row)
    return content if isinstance(content, Malformed) else jsonlines.parsed(content, row)


def _content(contents: BinaryIO, member: tarfile.TarInfo, row: int) -> bytes | Malformed:
    if member.size > LONGEST:
        return too_long(row)
    contents.seek(member.offset_data)
    return without_mark(contents.read(member.size))


def _samples(source: pa.NativeFile) -> Iterator[tuple[str, Members, int]]:
    """Yield (key, text members by suffix, byte where it ends) per sample, from the current position of the file.

    In a truncated archive, the last sample is yielded before the error is raised.
    """
    current: tuple[int, str, Members, int] | None = None
    try:
        for number, key, member, end in samples(source):
            if current is None or number != current[0]:
                if current is not None:
                    yield current[1:]
                current = number, key, {}, end
            current = *current[:3], end
            suffix = os.path.splitext(member.name)[1].lower()
            if suffix in (".txt", ".json"):
                current[2].setdefault(suffix, member)
    except UNREADABLE:
        if current is not None:
            yield current[1:]
        raise
    if current is not None:
        yield current[1:]


def _sizes(source: pa.NativeFile) -> Iterator[int]:
    """Yield the size of each sample in bytes."""
    at = 0
    for _, _, end in _samples(source):
        yield end - at
        at = end
