"""Captions from JSON lines: an object a line; the caption is a string, or a list of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.configuration.config import Captions
from pipelines.reading import plaintext
from pipelines.reading.files import File
from pipelines.reading.imagefolder import key_column
from pipelines.reading.slices import HEAD, Malformed, Slice, lines, numbered, require, table_of, without_mark

# A line is a line: the same counting pass.
plan = plaintext.plan


def check(file: File, captions: Captions) -> None:
    """Raises UsageError if none of the first objects has the configured caption."""
    check_names(columns(file, captions), file.uri, captions)


def columns(file: File, captions: Captions) -> list[str]:
    """Return the names in the first objects."""
    return names_of(parsed(without_mark(line), 0) for _, line in islice(lines(file), HEAD) if line is not None)


def names_of(items: Iterable[dict[str, Any] | Malformed]) -> list[str]:
    """Return every name that an object has, once."""
    return list(dict.fromkeys(name for item in items if isinstance(item, dict) for name in item))


def check_names(names: list[str], where: str, captions: Captions) -> None:
    if names:
        require(captions.caption, names, where, "captions.caption")


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
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
    """The object that a line or a member holds."""
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
    """Its caption or captions as bytes; what is no Unicode comes as bytes that are no UTF-8."""
    name = captions.caption
    if name not in item:
        return Malformed(row, "no_caption", f"no {name!r}; there is {', '.join(item) or 'nothing'}"[:300])
    value = item[name]
    for one in value if isinstance(value, list) else [value]:
        if one is not None and not isinstance(one, str):
            return Malformed(row, "malformed", f"{name!r} is {type(one).__name__}, not text")
    return [_encoded(one) for one in value] if isinstance(value, list) else _encoded(value)


def source_of(item: dict[str, Any], captions: Captions) -> tuple[str | None, str | None]:
    """(URL, status) of img2dataset; no status is null, one that is null "null"."""
    status = str(item["status"] or "null") if "status" in item else None
    return text_of(item, captions.url or "url"), status


def text_of(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return None if value is None else str(value).encode("utf-8", "replace").decode("utf-8")


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogatepass")
