"""An exclusions file of `crossaudit export`, by the file that each of its rows is about."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit import schema
from audit.errors import UsageError
from pipelines.reading.files import open_file

_COLUMNS = ["file", "row", "key", "caption_id", "action", "image_file", "image_row"]


@dataclass(frozen=True)
class Exclusions:
    """`files`: input rows of each caption file (None: was unreadable); `images`: images of each tar.

    `rows_of` and `samples_of` hold what is to be met in each of them, in order.
    """

    caption: str | None
    files: dict[str, int | None]
    images: dict[str, int]
    rows_of: dict[str, pa.Table]
    samples_of: dict[str, pa.Table]


def read(uri: str) -> Exclusions:
    """Raises UsageError if the file is not one of `crossaudit export`, or names a row twice."""
    again = "Write it with `crossaudit export RUN --what exclusions`."
    with open_file(uri) as source:
        try:
            table = pq.read_table(source, columns=_COLUMNS)
            notes = json.loads((table.schema.metadata or {})[schema.METADATA_KEY])
            caption, files, images = notes["caption"], notes["files"], notes["images"]
            table = table.cast(pa.schema([schema.EXCLUSIONS.field(name) for name in _COLUMNS]))
        except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise UsageError(f"is no exclusions file: {error}", where=uri, do=again) from error
    strange = set(table["action"].unique().to_pylist()) - set(schema.ACTION_WORDS)
    if strange:
        raise UsageError(f"action is drop or keep, not {', '.join(map(str, strange))}", where=uri, do=again)
    pairs = table.filter(pc.is_valid(table["image_file"])).group_by(["image_file", "image_row", "key", "action"])
    return Exclusions(
        caption,
        files,
        images,
        _by_file(table.drop_columns(["image_file", "image_row"]), uri),
        _by_file(pairs.aggregate([]).rename_columns(["file", "row", "key", "action"]), uri),
    )


def _by_file(table: pa.Table, uri: str) -> dict[str, pa.Table]:
    """The rows of each file, sorted by row; UsageError if one occurs twice."""
    table = table.sort_by([("file", "ascending"), ("row", "ascending")])
    found, start = {}, 0
    for item in pc.value_counts(table["file"].combine_chunks()).to_pylist():
        part = table.slice(start, item["counts"])
        if pc.count_distinct(part["row"]).as_py() != len(part):
            raise UsageError(f"names a row of {item['values']} twice", where=uri)
        found[item["values"]] = part
        start += len(part)
    return found
