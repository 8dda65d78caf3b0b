"""Read the rows of input shards, pair each with its caption id and its own image, and collect distinct captions."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.duplicates.captions import caption_id
from audit.errors import UsageError
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from pipelines.configuration.config import Config
from pipelines.reading import captions as captions_of
from pipelines.reading.caption_files import Sidecar
from pipelines.reading.files import File
from pipelines.reading.folders import Folder
from pipelines.reading.imagefolder import names_files
from pipelines.reading.sampling import Sample
from pipelines.reading.slices import SLICE_ROWS, Slice
from pipelines.tables.training_images import IMAGES

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Average number of captions per bucket, at most. A bucket is held in memory.
BUCKET_ROWS = 1 << 18
# Working table: the distinct captions of each input shard, sorted by bucket.
TEXTS = "_texts"
_LAYOUT = pa.schema([("bucket", pa.int32()), *schema.CAPTIONS])


@dataclass(frozen=True)
class Piece:
    """A slice in an input shard.

    Attributes:
        slice: The slice of a caption file.
        at: Its first row, counted from the start of the shard.
        ordinal: Its first row, counted from the first of all input rows.
        pair: How its rows are paired with images: `stem_key`, `key`, `file_name`, `row` or `none`.
        images: The parts of `_images` that its rows may be paired with.
    """

    slice: Slice
    at: int
    ordinal: int
    pair: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The slices of an input shard.

    Attributes:
        pieces: The slices, in order.
        buckets: The number of buckets of captions in the run.
        sample: The sample of rows to read, or None for all rows.
    """

    pieces: tuple[Piece, ...]
    buckets: int
    sample: Sample | None

    def chosen(self, piece: Piece, start: int, stop: int) -> np.ndarray | None:
        """Return which of the rows [start, stop) of a slice are in the sample.

        Args:
            piece: The slice.
            start: The first row, counted from the start of the slice.
            stop: The end of the rows.

        Returns:
            Their numbers in the file, or None if all rows are read.
        """
        if self.sample is None:
            return None
        taken = self.sample.within(piece.ordinal + start, piece.ordinal + stop)
        return taken - piece.ordinal + piece.slice.first

    def within(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
        """Yield (piece, first row, end) per slice with rows in [start, stop) of the shard, counted within the slice."""
        for piece in self.pieces:
            low, high = max(start - piece.at, 0), min(stop - piece.at, piece.slice.rows)
            if low < high:
                yield piece, low, high


def shards_of(
    slices: list[Slice], config: Config, image_files: list[File], buckets: int, sample: Sample | None
) -> Iterator[Shard]:
    """Join consecutive slices into shards, as long as they have at most SLICE_ROWS rows together.

    Args:
        slices: The slices of all caption files, in order.
        config: The configuration of the run.
        image_files: The image files and folders of the run.
        buckets: The number of buckets of captions.
        sample: The sample of rows to read, or None for all rows.

    Yields:
        Shards, whose `source` is a `Source`.
    """
    pair: str = config.images.join_on if config.images else "none"
    part_of = {file.uri: f"{number:05d}" for number, file in enumerate(image_files)}
    alike = _namesakes(list(dict.fromkeys(part.file for part in slices)), image_files)
    folders = tuple(part_of[file.uri] for file in image_files if isinstance(file, Folder))
    every = tuple(part_of.values())
    pieces: list[Piece] = []
    rows = ordinal = number = 0
    for part in slices:
        if pieces and rows + part.rows > SLICE_ROWS:
            yield Shard(f"{number:05d}", Source(tuple(pieces), buckets, sample), 0, rows)
            pieces, rows, number = [], 0, number + 1
        namesakes = tuple(part_of[file.uri] for file in alike[part.file])
        images: tuple[str, ...] = {"stem_key": namesakes, "key": every}.get(pair, ())
        by = pair
        named = isinstance(part.file, Sidecar) or names_files(part.file, config.captions)
        if pair != "none" and folders and named:
            by, images = "file_name", folders
        if part.file.uri in part_of:  # captions and images are in one file: each row has its image
            by, images = "row", (part_of[part.file.uri],)
        pieces.append(Piece(part, rows, ordinal, by, images))
        rows, ordinal = rows + part.rows, ordinal + part.rows
    yield Shard(f"{number:05d}", Source(tuple(pieces), buckets, sample), 0, rows)


def _namesakes(caption_files: list[File], image_files: list[File]) -> dict[File, list[File]]:
    """Map each caption file to the image files that it is paired with: those with the same folder and stem.

    Folders are first compared as full paths, then relative to the configured roots. A caption file that is still
    unpaired is paired by its stem alone, if no other caption file and no other image file has that stem.
    """
    keys = (
        lambda file: (os.path.dirname(file.uri), file.stem),
        lambda file: (os.path.dirname(file.name), file.stem),
    )
    found: dict[File, list[File]] = {}
    for key in keys:
        of_key: dict[tuple[str, str], list[File]] = defaultdict(list)
        for image in image_files:
            of_key[key(image)].append(image)
        for file in caption_files:
            found[file] = found.get(file) or of_key.get(key(file), [])
    stems, image_stems = (Counter(file.stem for file in files) for files in (caption_files, image_files))
    of_stem = {image.stem: image for image in image_files}
    for file in caption_files:
        if not found[file] and stems[file.stem] == image_stems[file.stem] == 1:
            found[file] = [of_stem[file.stem]]
    return found


def rows_of(worker: Worker, shard: Shard) -> Tables:
    """Read the rows of a shard.

    Returns:
        The tables `rows`, `_texts` with the distinct captions, and `errors`.
    """
    source: Source = shard.source
    tables, errors = [schema.ROWS.empty_table().append_column("caption", pa.array([], pa.string()))], []
    for piece, start, stop in source.within(shard.start, shard.stop):
        chosen = source.chosen(piece, start, stop)
        table, problems = captions_of.read(piece.slice, start, stop, worker.config.captions, chosen)
        errors += problems
        table = table.append_column("file", pa.repeat(piece.slice.file.name, len(table)))
        table = table.append_column("image_id", _own_images(worker, piece, table))
        tables.append(table.append_column("caption_id", pa.nulls(len(table), pa.string())))
    table = pa.concat_tables([table.select(tables[0].column_names) for table in tables])
    # Hash each distinct caption once, even if many rows have it.
    distinct = table["caption"].combine_chunks().dictionary_encode()
    ids, bucket = _hashed(distinct.dictionary, source.buckets)
    rows = table.set_column(0, "caption_id", ids.take(distinct.indices)).select(schema.ROWS.names).cast(schema.ROWS)
    copies = np.bincount(distinct.indices.to_numpy(), minlength=len(ids))
    texts = pa.table([bucket, ids, distinct.dictionary, copies], schema=_LAYOUT)
    return {"rows": rows, TEXTS: texts.sort_by([("bucket", "ascending")]), "errors": errors_table(errors)}


def _hashed(texts: pa.Array, buckets: int) -> tuple[pa.Array, np.ndarray]:
    """Return the `caption_id` of each text, and the bucket of each id. A bucket is a range of ids."""
    ids = [caption_id(text) for text in texts.to_pylist()]
    heads = np.array([int(id_[:8], 16) for id_ in ids], np.uint64)
    return pa.array(ids, pa.string()), (heads * np.uint64(buckets) >> np.uint64(32)).astype(np.int32)


def on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    """Return the tables of a row that could not be processed: one error, or none if the row is not in the sample.

    Args:
        ledger: The tables of the run (not used).
        shard: A shard of one row.
        kind: The `kind` of the error.
        message: What went wrong.

    Returns:
        The same tables as `rows_of`.
    """
    source: Source = shard.source
    [(piece, at, end)] = source.within(shard.start, shard.start + 1)
    chosen = source.chosen(piece, at, end)
    where = {"stage": "ingest", "file": piece.slice.file.name, "row": piece.slice.first + at, "rows": 1}
    errors = [] if chosen is not None and not len(chosen) else [where | {"kind": kind, "message": message}]
    return {"rows": schema.ROWS.empty_table(), TEXTS: _LAYOUT.empty_table(), "errors": errors_table(errors)}


def _own_images(worker: Worker, piece: Piece, table: pa.Table) -> pa.Array:
    """Return the image_id of each row's own image, or null."""
    if not piece.images or not len(table):
        return pa.nulls(len(table), pa.string())
    known, places = worker.cache.get(IMAGES, (None, None))
    if known != (piece.pair, piece.images):
        columns = ["image_id", "file", "row", "key", "uri"]
        places = pa.concat_tables([worker.ledger.read(IMAGES, part, columns) for part in piece.images])
        if piece.pair not in ("row", "file_name"):
            _refuse_twins(places, piece.pair)
        worker.cache[IMAGES] = (piece.pair, piece.images), places  # one entry at a time
    if piece.pair == "file_name":
        return _by_file_name(piece.slice.file, table, places)
    by = "row" if piece.pair == "row" else "key"
    return places["image_id"].combine_chunks().take(pc.index_in(table[by], value_set=places[by].combine_chunks()))


def _by_file_name(file: File, table: pa.Table, places: pa.Table) -> pa.Array:
    """Return the image_id of the image that each row names, or null.

    The name is a path relative to the folder of the caption file, or else to the root of the images.
    """
    names = [os.path.normpath(name) if name else None for name in table["key"].to_pylist()]
    folder = os.path.dirname(file.uri)
    paths = pa.array([None if name is None else f"{folder}/{name}" for name in names], pa.string())
    beside = pc.index_in(paths, value_set=places["uri"].combine_chunks())
    below = pc.index_in(pa.array(names, pa.string()), value_set=places["file"].combine_chunks())
    return places["image_id"].combine_chunks().take(pc.coalesce(beside, below))


def _refuse_twins(places: pa.Table, pair: str) -> None:
    """Raise UsageError if several images have the same key."""
    counts = pc.value_counts(places["key"].combine_chunks())
    twins = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(twins):
        key = twins[0]["values"].as_py()
        files = places.filter(pc.equal(places["key"], key))["file"].to_pylist()
        raise UsageError(
            f"the image key {key!r} occurs in {' and in '.join(dict.fromkeys(files))} {len(files)} times",
            where="images.join_on",
            hint="Pair by stem_key, or by none."
            if pair == "key"
            else "Make keys unique within a file, or pair by none.",
        )
