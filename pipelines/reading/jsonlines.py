"""Read captions from JSON lines: one object per line, whose caption is a string or a list of strings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.configuration.inputs import Captions
from pipelines.reading import plaintext
from pipelines.reading.files import File
from pipelines.reading.imagefolder import key_column
from pipelines.reading.slices import HEAD, Malformed, Slice, lines, numbered, require, table_of, without_mark

# Lines are counted as in plain text.
plan = plaintext.plan


def check(file: File, captions: Captions) -> None:
    """Raise UsageError if none of the first HEAD objects has the configured caption column."""
    check_names(columns(file, captions), file.uri, captions)


def columns(file: File, captions: Captions) -> list[str]:
    """Return the names in the first HEAD objects."""
    return names_of(parsed(without_mark(line), 0) for _, line in islice(lines(file), HEAD) if line is not None)


def names_of(items: Iterable[dict[str, Any] | Malformed]) -> list[str]:
    """Return the distinct names in the objects, in the order of their first occurrence."""
    return list(dict.fromkeys(name for item in items if isinstance(item, dict) for name in item))


def check_names(names: list[str], where: str, captions: Captions) -> None:
    """Check that the configured caption column is among the names. If there are no names, nothing is checked.

    Args:
        names: The names in the first objects.
        where: The file, for the error.
        captions: The configured columns.

    Raises:
        UsageError: The column is missing.
    """
    if names:
        require(captions.caption, names, where, "captions.caption")


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read rows [start, stop) of a slice.

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    rows, malformed = [], []
    for row, line in numbered(part, start, stop):
        item = line if isinstance(line, Malformed) else parsed(line, row)
        caption = item if isinstance(item, Malformed) else caption_of(item, row, captions)
        if isinstance(caption, Malformed):
            malformed.append(caption)
        else:
            assert isinstance(item, dict)
            rows.append((caption, row, text_of(item, key_column(part.file, captions)), *source_of(item, captions)))
    return table_of(rows), malformed


def parsed(content: bytes, row: int) -> dict[str, Any] | Malformed:
    """Parse the JSON object in a line or a tar member. `row` is its number, for errors."""
    if not content.strip():
        return Malformed(row, "empty_line", "an empty line; expected a JSON object")
    try:
        item = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Malformed(row, "invalid_utf8", f"not UTF-8: byte {error.start} ({error.reason})")
    except (ValueError, RecursionError) as error:
        return Malformed(row, "malformed", f"broken JSON: {error}")
    if not isinstance(item, dict):
        return Malformed(row, "malformed", f"expected a JSON object, not {type(item).__name__}")
    return item


def caption_of(item: dict[str, Any], row: int, captions: Captions) -> bytes | None | list[bytes | None] | Malformed:
    """Return the caption or captions of an object as bytes.

    Args:
        item: The object.
        row: Its row number, for errors.
        captions: The configured columns.

    Returns:
        UTF-8 bytes, or None for a null; a list of these if the object has a list of captions. Text that is not valid
        Unicode becomes bytes that are not valid UTF-8. Malformed if the object has no caption or one that is not text.
    """
    name = captions.caption
    if name not in item:
        return Malformed(row, "no_caption", f"no {name!r}; there is {', '.join(item) or 'nothing'}"[:300])
    value = item[name]
    for one in value if isinstance(value, list) else [value]:
        if one is not None and not isinstance(one, str):
            return Malformed(row, "malformed", f"{name!r} is {type(one).__name__}, not text")
    return [_encoded(one) for one in value] if isinstance(value, list) else _encoded(value)


def source_of(item: dict[str, Any], captions: Captions) -> tuple[str | None, str | None]:
    """Return the URL and the status that img2dataset wrote. A missing status is None, a null status is "null"."""
    status = str(item["status"] or "null") if "status" in item else None
    return text_of(item, captions.url or "url"), status


def text_of(item: dict[str, Any], name: str) -> str | None:
    """Return a value of an object as text, or None if it is missing or null."""
    value = item.get(name)
    return None if value is None else str(value).encode("utf-8", "replace").decode("utf-8")


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")
