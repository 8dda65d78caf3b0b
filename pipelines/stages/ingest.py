"""Ingest: every input row accounted for, every caption once, near-identical ones grouped.

Files are cut into slices; input shards, slices in a row, write `rows`; buckets of the hash of `caption_id` write
`captions`; `group` writes `caption_groups`. Before the rows the images are listed, so that a row can name its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.captions import caption_id
from audit.errors import AuditError, UsageError
from pipelines.config import Config
from pipelines.context import Run, Step
from pipelines.ledger import Ledger, Shard, Tables, errors_table
from pipelines.reading import captions as captions_of
from pipelines.reading import images as images_of
from pipelines.reading.files import File, find
from pipelines.reading.folders import gather
from pipelines.reading.sampling import Sample
from pipelines.reading.slices import SLICE_ROWS, Slice
from pipelines.stages import group

if TYPE_CHECKING:
    from pipelines.worker import Worker

# Working tables: the slices of the caption files; where each image lies; the distinct captions of each input shard,
# sorted by their bucket.
SLICES, IMAGES, TEXTS = "_slices", "_images", "_texts"
# One bucket is held in memory, one part of `_slices` is read for so many files.
BUCKET_ROWS = 1 << 18
PLAN_FILES = 64
_TEXTS = pa.schema([("bucket", pa.int32()), *schema.CAPTIONS])
_SLICES = pa.schema(
    [("file", pa.int64()), ("first", pa.int64()), ("rows", pa.int64()), ("place", pa.list_(pa.int64()))]
)


@dataclass(frozen=True)
class Piece:
    """One slice of an input shard: where it begins in the shard and among all input rows, and whose images it has."""

    slice: Slice
    at: int
    ordinal: int
    pair: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The slices of an input shard."""

    pieces: tuple[Piece, ...]
    buckets: int
    sample: Sample | None

    def chosen(self, piece: Piece, start: int, stop: int) -> np.ndarray | None:
        """Which rows [start, stop) of a slice the sample takes, by their number in the file; None without a sample."""
        if self.sample is None:
            return None
        taken = self.sample.within(piece.ordinal + start, piece.ordinal + stop)
        return taken - piece.ordinal + piece.slice.first

    def within(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
        """(piece, first row and end in its slice) of the rows [start, stop) of the shard."""
        for piece in self.pieces:
            low, high = max(start - piece.at, 0), min(stop - piece.at, piece.slice.rows)
            if low < high:
                yield piece, low, high


@dataclass(frozen=True)
class Inputs:
    """The files of a run."""

    captions: list[File]
    images: list[File]


def plan(config: Config) -> Inputs:
    """Finds the files and looks at their columns. Raises AuditError or UsageError that names what is missing."""
    captions = find(config.captions.path, "captions")
    captions_of.check(captions, config.captions)
    return Inputs(captions, find_images(config))


def find_images(config: Config) -> list[File]:
    return gather(find(config.images.path, "images")) if config.images else []


def run(run: Run, inputs: Inputs) -> None:
    """Writes `rows`, `captions` and `caption_groups`; the manifest has the fingerprints of `inputs` already."""
    config = run.config.captions
    with run.manifest.stage("ingest") as stage:
        slices = _plan(run, inputs.captions)
        total = sum(part.rows for part in slices)
        sample = Sample(config.sample, total, config.seed) if config.sample and config.sample < total else None
        taken = total if sample is None else sample.size
        run.manifest.data["accounting"] = {"input_rows": total, "sampled_out": total - taken}
        list_images(run, inputs.images)
        buckets = -(-taken // BUCKET_ROWS)
        run.execute(
            Step("ingest: rows", "rows", "rows", run.ledger, _rows, _rows_left),
            list(_shards(slices, run.config, inputs.images, buckets, sample)),
        )
        step = Step("ingest: captions", "captions", "buckets", run.ledger, _distinct)
        run.execute(step, [Shard(f"{bucket:05d}", None, bucket, bucket + 1) for bucket in range(buckets)])
        group.run(run)
        stage |= {"rows_in": total, "rows_out": run.manifest.refresh("rows")}
        for table in ("captions", "caption_groups"):
            run.manifest.refresh(table)
        if not stage["rows_out"]:
            ask = f'`crossaudit query {run.config.out} "from errors"` says why.'
            raise AuditError(f"none of {taken} rows has a caption", where=inputs.captions[0].uri, do=ask)


def fingerprints(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What the manifest keeps of each input file."""
    nulls = [File(path, path, 0) for path in (config.calibration.captions, config.calibration.screen) if path]
    found = [("captions", inputs.captions), ("images", inputs.images), ("calibration", nulls)]
    return [item for kind, files in found for item in prints(kind, files)]


def prints(kind: str, files: Sequence[File]) -> list[dict[str, Any]]:
    """The fingerprint of each of the files of a kind."""
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda file: file.fingerprint(), files))
    return [
        {"kind": kind, "rows": None, "file": file.uri, "name": file.name, "sha256": sha256}
        for file, sha256 in zip(files, found, strict=True)
    ]


def _plan(run: Run, files: list[File]) -> list[Slice]:
    """The slices of all files, in order; they are in the manifest too."""
    shards = [
        Shard(f"{at // PLAN_FILES:05d}", (at, files[at : at + PLAN_FILES]), 0, len(files[at : at + PLAN_FILES]))
        for at in range(0, len(files), PLAN_FILES)
    ]
    run.execute(Step("ingest: files", SLICES, "files", run.ledger, _slices, _slices_left), shards)
    slices = []
    planned: dict[int, list[list[int]]] = {}
    for row in run.ledger.read(SLICES).to_pylist():
        slices.append(Slice(files[row["file"]], row["first"], row["rows"], tuple(row["place"])))
        planned.setdefault(row["file"], []).append([row["rows"], *row["place"]])
    run.manifest.slices({file.uri: planned.get(number, []) for number, file in enumerate(files)})
    if not slices:
        raise AuditError("the data set has no rows", where=files[0].uri, do="Check `captions` in the configuration.")
    return slices


def _slices(worker: Worker, shard: Shard) -> Tables:
    before, files = shard.source
    found, errors = [], []
    for number in range(before + shard.start, before + shard.stop):
        slices, problems = captions_of.plan(files[number - before], worker.config.captions)
        errors += problems
        found += [{"file": number, "first": s.first, "rows": s.rows, "place": s.place} for s in slices]
    return {SLICES: pa.Table.from_pylist(found, schema=_SLICES), "errors": errors_table(errors)}


def _slices_left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    error = captions_of.unreadable(shard.source[1][shard.start], message[:300])
    return {SLICES: _SLICES.empty_table(), "errors": errors_table([error])}


def list_images(run: Run, files: list[File]) -> None:
    """Writes `_images`: where each of them lies."""
    if run.config.images is None:
        return
    shards = [Shard(f"{number:05d}", file, 0, 1) for number, file in enumerate(files)]
    work = partial(_list, column=run.config.images.column)
    run.execute(Step("ingest: images", IMAGES, "files", run.ledger, work, _list_left), shards)
    if not any(run.ledger.rows(IMAGES, shard.name) for shard in shards):
        raise AuditError(
            f"no image in {len(files)} files", where=files[0].uri, do="Check `images` in the configuration."
        )


def _list(worker: Worker, shard: Shard, column: str) -> Tables:
    file: File = shard.source
    places, problem = images_of.index(file, column)
    return {IMAGES: places, "errors": _file_error(file, problem) if problem else errors_table([])}


def _list_left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    return {IMAGES: images_of.INDEX.empty_table(), "errors": _file_error(shard.source, message)}


def _file_error(file: File, problem: str) -> pa.Table:
    return errors_table([{"stage": "embed", "file": file.name, "kind": "unreadable_file", "message": problem[:300]}])


def _shards(
    slices: list[Slice], config: Config, image_files: list[File], buckets: int, sample: Sample | None
) -> Iterator[Shard]:
    """Slices in a row, of any files, as long as they have no more than SLICE_ROWS rows together."""
    pair: str = config.images.pair if config.images else "none"
    part_of = {file.uri: f"{number:05d}" for number, file in enumerate(image_files)}
    of_stem: dict[str, list[str]] = {}
    for file in image_files:
        of_stem.setdefault(file.stem, []).append(part_of[file.uri])
    every = tuple(part_of.values())
    pieces: list[Piece] = []
    rows = ordinal = number = 0
    for part in slices:
        if pieces and rows + part.rows > SLICE_ROWS:
            yield Shard(f"{number:05d}", Source(tuple(pieces), buckets, sample), 0, rows)
            pieces, rows, number = [], 0, number + 1
        images: tuple[str, ...] = {"stem_key": tuple(of_stem.get(part.file.stem, ())), "key": every}.get(pair, ())
        by = pair
        if part.file.uri in part_of:  # captions and images in one file: a row's image is its own
            by, images = "row", (part_of[part.file.uri],)
        pieces.append(Piece(part, rows, ordinal, by, images))
        rows, ordinal = rows + part.rows, ordinal + part.rows
    yield Shard(f"{number:05d}", Source(tuple(pieces), buckets, sample), 0, rows)


def _rows(worker: Worker, shard: Shard) -> Tables:
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
    # Hashed once, however many rows carry it.
    distinct = table["caption"].combine_chunks().dictionary_encode()
    ids, bucket = _hashed(distinct.dictionary, source.buckets)
    rows = table.set_column(0, "caption_id", ids.take(distinct.indices)).select(schema.ROWS.names).cast(schema.ROWS)
    copies = np.bincount(distinct.indices.to_numpy(), minlength=len(ids))
    texts = pa.table([bucket, ids, distinct.dictionary, copies], schema=_TEXTS)
    return {"rows": rows, TEXTS: texts.sort_by([("bucket", "ascending")]), "errors": errors_table(errors)}


def _hashed(texts: pa.Array, buckets: int) -> tuple[pa.Array, np.ndarray]:
    """The `caption_id` of texts, and the bucket that it belongs to: buckets are ranges of ids."""
    ids = [caption_id(text) for text in texts.to_pylist()]
    heads = np.array([int(id_[:8], 16) for id_ in ids], np.uint64)
    return pa.array(ids, pa.string()), (heads * np.uint64(buckets) >> np.uint64(32)).astype(np.int32)


def _rows_left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    source: Source = shard.source
    [(piece, at, end)] = source.within(shard.start, shard.start + 1)
    chosen = source.chosen(piece, at, end)
    where = {"stage": "ingest", "file": piece.slice.file.name, "row": piece.slice.first + at, "rows": 1}
    errors = [] if chosen is not None and not len(chosen) else [where | {"kind": kind, "message": message}]
    return {"rows": schema.ROWS.empty_table(), TEXTS: _TEXTS.empty_table(), "errors": errors_table(errors)}


def _own_images(worker: Worker, piece: Piece, table: pa.Table) -> pa.Array:
    """The image_id of each row's own image, or null."""
    if not piece.images or not len(table):
        return pa.nulls(len(table), pa.string())
    known, places = worker.cache.get(IMAGES, (None, None))
    if known != (piece.pair, piece.images):
        columns = ["image_id", "file", "row", "key"]
        places = pa.concat_tables([worker.ledger.read(IMAGES, part, columns) for part in piece.images])
        if piece.pair != "row":
            _refuse_twins(places)
        worker.cache[IMAGES] = (piece.pair, piece.images), places  # of one file at a time
    by = "row" if piece.pair == "row" else "key"
    return places["image_id"].combine_chunks().take(pc.index_in(table[by], value_set=places[by].combine_chunks()))


def _refuse_twins(places: pa.Table) -> None:
    counts = pc.value_counts(places["key"].combine_chunks())
    twins = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(twins):
        key = twins[0]["values"].as_py()
        files = places.filter(pc.equal(places["key"], key))["file"].to_pylist()
        raise UsageError(
            f"the image key {key!r} occurs in {' and in '.join(dict.fromkeys(files))} {len(files)} times",
            where="images.pair",
            do="Pair by stem_key, or by none.",
        )


def _distinct(worker: Worker, shard: Shard) -> Tables:
    """One bucket: each text once in the whole run, ordered by id."""
    found = worker.ledger.between(TEXTS, "bucket", shard.start, shard.start + 1)
    grouped = found.group_by("caption_id", use_threads=False)
    table = grouped.aggregate([("caption", "first"), ("copies", "sum")])
    columns = [table[name] for name in ("caption_id", "caption_first", "copies_sum")]
    return {"captions": pa.table(columns, schema=schema.CAPTIONS).sort_by("caption_id")}
