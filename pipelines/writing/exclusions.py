"""Read an exclusions file of `crossaudit exclusions`, grouped by the files that its rows refer to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit import schema
from audit.errors import UsageError
from audit.record.filesystem import open_file

_COLUMNS = ["file", "row", "key", "caption_id", "action", "image_file", "image_row"]
_NOTES = ("caption", "delimiter", "files", "images", "folders", "shared")
_PART = pa.schema([schema.EXCLUSIONS.field(name) for name in ("row", "key", "caption_id", "action")])


@dataclass(frozen=True)
class Exclusions:
    """Hold the exclusions and the files of the audit.

    Attributes:
        caption: The caption column of the audit.
        delimiter: The delimiter of the audit's text files.
        files: Input rows of each caption file; None if it was unreadable.
        images: Images of each tar and Parquet file.
        folders: Image files of each folder.
        shared: Files with both captions and images.
        rows_of: The rows that must be found in each caption file, in order.
        samples_of: The samples that must be found in each image file, in order.
    """

    caption: str | None
    delimiter: str | None
    files: dict[str, int | None]
    images: dict[str, int]
    folders: dict[str, int]
    shared: list[str]
    rows_of: dict[str, pa.Table]
    samples_of: dict[str, pa.Table]


def read(uri: str) -> Exclusions:
    """Read an exclusions file.

    Raises UsageError if it was not written by `crossaudit exclusions`, or names a row twice.
    """
    again = "Write it with `crossaudit exclusions RUN`."
    with open_file(uri) as source:
        try:
            table = pq.read_table(source, columns=_COLUMNS)
            notes = json.loads((table.schema.metadata or {})[schema.METADATA_KEY])
            known: dict[str, Any] = {name: notes[name] for name in _NOTES}
            table = table.cast(pa.schema([schema.EXCLUSIONS.field(name) for name in _COLUMNS]))
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise UsageError(f"not an exclusions file: {error}", where=uri, hint=again) from error
    strange = set(table["action"].unique().to_pylist()) - set(schema.ACTION_WORDS)
    if strange:
        raise UsageError(f"action is drop or keep, not {', '.join(map(str, strange))}", where=uri, hint=again)
    pairs = table.filter(pc.is_valid(table["image_file"])).group_by(["image_file", "image_row", "key", "action"])
    samples = pairs.aggregate([]).rename_columns(["file", "row", "key", "action"])
    rows = table.drop_columns(["image_file", "image_row"])
    return Exclusions(**known, rows_of=_by_file(rows, uri), samples_of=_by_file(samples, uri))


def part_of(exclusions: Exclusions, name: str, role: str) -> pa.Table:
    """Return the exclusions that one file must contain.

    Args:
        exclusions: All exclusions.
        name: The file.
        role: "captions", "images" or "both". With "both", each row occurs once, with the action of its caption.

    Returns:
        The exclusions of the file: `row`, `key`, `caption_id` and `action`, ordered by row.
    """
    rows = exclusions.rows_of.get(name) if role != "images" else None
    samples = exclusions.samples_of.get(name) if role != "captions" else None
    parts = [_PART.empty_table() if rows is None else rows.select(_PART.names)]
    if samples is not None:
        more = samples.filter(pc.invert(pc.is_in(samples["row"], value_set=parts[0]["row"].combine_chunks())))
        parts.append(more.append_column("caption_id", pa.nulls(len(more), pa.string())).select(_PART.names))
    return pa.concat_tables(parts).sort_by("row")


def _by_file(table: pa.Table, uri: str) -> dict[str, pa.Table]:
    """Group rows by file, sorted by row. Raises UsageError if a row occurs twice."""
    table = table.sort_by([("file", "ascending"), ("row", "ascending")])
    found, start = {}, 0
    for item in pc.value_counts(table["file"].combine_chunks()).to_pylist():
        part = table.slice(start, item["counts"])
        if pc.count_distinct(part["row"]).as_py() != len(part):
            raise UsageError(f"names a row of {item['values']} twice", where=uri)
        found[item["values"]] = part
        start += len(part)
    return found
