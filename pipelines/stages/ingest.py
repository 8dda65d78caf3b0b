"""Ingest: every input row accounted for, every caption once, near-identical ones grouped.

Input shards write `rows`; buckets of the hash of `caption_id` write `captions` and `caption_groups`. Before them the
images are listed, so that a row can name its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit import schema
from audit.captions import caption_group, caption_id
from audit.errors import AuditError, UsageError
from pipelines.config import Config
from pipelines.context import Run, Step
from pipelines.ledger import Ledger, Shard, Tables, errors_table
from pipelines.reading import captions as captions_of
from pipelines.reading import images as images_of
from pipelines.reading.files import File, find
from pipelines.reading.folders import gather

if TYPE_CHECKING:
    from pipelines.worker import Worker

# Working tables: where each image lies; the distinct captions of each input shard, with their bucket.
IMAGES, TEXTS = "_images", "_texts"
BUCKET_ROWS = 1 << 18
_TEXTS = pa.schema([("bucket", pa.int32()), *schema.CAPTIONS])


@dataclass(frozen=True)
class Source:
    """An input shard's slice, and the parts of `_images` among which its rows find their own image."""

    slice: captions_of.Slice
    pair: str
    images: tuple[str, ...]
    buckets: int


@dataclass(frozen=True)
class Inputs:
    """The files of a run, and how the captions among them are cut into shards."""

    captions: list[File]
    images: list[File]
    shards: list[Shard]
    rows: dict[str, int]
    errors: list[dict[str, Any]]


def plan(config: Config) -> Inputs:
    """Finds the files and looks at their columns. Raises AuditError or UsageError that names what is missing."""
    captions = find(config.captions.path, "captions")
    shards, rows, errors = captions_of.plan(captions, config.captions)
    return Inputs(captions, find_images(config), shards, rows, errors)


def find_images(config: Config) -> list[File]:
    return gather(find(config.images.path, "images")) if config.images else []


def run(run: Run, inputs: Inputs) -> None:
    """Writes `rows`, `captions` and `caption_groups`; the manifest has the fingerprints of `inputs` already."""
    with run.manifest.stage("ingest") as stage:
        if inputs.errors:
            run.ledger.write("errors", "ingest-files", errors_table(inputs.errors))
        total = sum(inputs.rows.values())
        run.manifest.data["accounting"] = {"input_rows": total, "sampled_out": 0}
        list_images(run, inputs.images)
        buckets = -(-total // BUCKET_ROWS)
        sources = [_source(shard, run, inputs.images, buckets) for shard in inputs.shards]
        run.execute(Step("ingest: rows", "rows", "rows", run.ledger, _rows, _rows_left), sources)
        step = Step("ingest: captions", "captions", "buckets", run.ledger, _distinct)
        run.execute(step, [Shard(f"{bucket:05d}", buckets, bucket, bucket + 1) for bucket in range(buckets)])
        stage |= {"rows_in": total, "rows_out": run.manifest.refresh("rows")}
        for table in ("captions", "caption_groups"):
            run.manifest.refresh(table)
        if not stage["rows_out"]:
            ask = f'`crossaudit query {run.config.out} "from errors"` says why.'
            raise AuditError(f"none of {total} rows has a caption", where=inputs.captions[0].uri, do=ask)


def fingerprints(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What the manifest keeps of each input file."""
    nulls = [File(path, path, 0) for path in (config.calibration.captions, config.calibration.screen) if path]
    captions = [item | {"rows": inputs.rows.get(item["file"])} for item in prints("captions", inputs.captions)]
    return [*captions, *prints("images", inputs.images), *prints("calibration", nulls)]


def prints(kind: str, files: Sequence[File]) -> list[dict[str, Any]]:
    """The fingerprint of each of the files of a kind."""
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda file: file.fingerprint(), files))
    known = {"kind": kind, "rows": None}
    return [
        known | {"file": file.uri, "name": file.name, "sha256": sha256}
        for file, sha256 in zip(files, found, strict=True)
    ]


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


def _source(shard: Shard, run: Run, image_files: list[File], buckets: int) -> Shard:
    part: captions_of.Slice = shard.source
    pair: str = run.config.images.pair if run.config.images else "none"
    number_of = {file.uri: f"{number:05d}" for number, file in enumerate(image_files)}
    if part.file.uri in number_of:  # captions and images in one file: a row's image is its own
        pair, images = "row", [number_of[part.file.uri]]
    elif pair == "stem_key":
        images = [number_of[file.uri] for file in image_files if file.stem == part.file.stem]
    else:
        images = list(number_of.values()) if pair == "key" else []
    return Shard(shard.name, Source(part, pair, tuple(images), buckets), shard.start, shard.stop)


def _rows(worker: Worker, shard: Shard) -> Tables:
    source: Source = shard.source
    table, errors = captions_of.read(source.slice, shard.start, shard.stop)
    texts = table["caption"].to_pylist()
    ids = pa.array([caption_id(text) for text in texts], pa.string())
    rows = pa.table(
        {
            "caption_id": ids,
            "file": pa.repeat(source.slice.file.name, len(table)),
            "row": table["row"],
            "key": table["key"],
            "url": table["url"],
            "image_id": _own_images(worker, source, table),
        },
        schema=schema.ROWS,
    )
    return {"rows": rows, TEXTS: _count(ids, texts, source.buckets), "errors": errors_table(errors)}


def _rows_left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    part: captions_of.Slice = shard.source.slice
    where = {"stage": "ingest", "file": part.file.name, "row": part.first + shard.start, "rows": 1}
    errors = errors_table([where | {"kind": kind, "message": message}])
    return {"rows": schema.ROWS.empty_table(), TEXTS: _TEXTS.empty_table(), "errors": errors}


def _own_images(worker: Worker, source: Source, table: pa.Table) -> pa.Array:
    """The image_id of each row's own image, or null."""
    if not source.images or not len(table):
        return pa.nulls(len(table), pa.string())
    places = worker.cache.get(source.images)
    if places is None:
        columns = ["image_id", "file", "row", "key"]
        places = pa.concat_tables([worker.ledger.read(IMAGES, part, columns) for part in source.images])
        if source.pair != "row":
            _refuse_twins(places)
        worker.cache[source.images] = places
    by = "row" if source.pair == "row" else "key"
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


def _count(ids: pa.Array, texts: list[str], buckets: int) -> pa.Table:
    """The distinct captions of a shard, sorted by bucket, so that a bucket reads only its own row groups."""
    copies: dict[str, int] = defaultdict(int)
    text_of = {}
    for id_, text in zip(ids.to_pylist(), texts, strict=True):
        copies[id_] += 1
        text_of[id_] = text
    rows = sorted((int(id_[:8], 16) * buckets >> 32, id_, text_of[id_], count) for id_, count in copies.items())
    columns = list(zip(*rows, strict=True)) or [()] * len(_TEXTS)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, _TEXTS, strict=True)], schema=_TEXTS
    )


def _distinct(worker: Worker, shard: Shard) -> Tables:
    """One bucket: each text once in the whole run, ordered by id."""
    ledger = worker.ledger
    found: dict[str, tuple[str, int]] = {}
    for name in ledger.parts(TEXTS):
        table = pq.read_table(
            ledger.path(TEXTS, f"{name}.parquet"),
            filesystem=ledger.filesystem,
            filters=[("bucket", "==", shard.start)],
            partitioning=None,
        )
        for id_, text, copies in zip(*(table[name].to_pylist() for name in schema.CAPTIONS.names), strict=True):
            found[id_] = text, copies + (found[id_][1] if id_ in found else 0)
    ids = sorted(found)
    captions = {"caption_id": ids, "caption": [found[id_][0] for id_ in ids], "copies": [found[id_][1] for id_ in ids]}
    groups = {"caption_id": ids, "caption_group": [caption_group(found[id_][0]) for id_ in ids]}
    return {
        "captions": pa.table(captions, schema=schema.CAPTIONS),
        "caption_groups": pa.table(groups, schema=schema.CAPTION_GROUPS),
    }
