"""Ingest: every input row accounted for, every caption once, near-identical ones grouped.

Files are cut into slices; input shards, slices in a row, write `rows`; buckets of the hash of `caption_id` write
`captions`; `group` writes `caption_groups`. Before the rows the images are listed, so that a row can name its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from pipelines.configuration.config import Config
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.reading import caption_files, precomputed
from pipelines.reading import captions as captions_of
from pipelines.reading import images as images_of
from pipelines.reading.files import File, find, is_folder, paths_of
from pipelines.reading.folders import gather
from pipelines.reading.imagefolder import is_metadata
from pipelines.reading.sampling import Sample
from pipelines.reading.slices import Slice
from pipelines.steps import caption_groups, pairing
from pipelines.steps.input_rows import IMAGES, TEXTS, lost_row, rows_of, shards_of

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# A working table: the slices of the caption files.
SLICES = "_slices"
# One bucket is held in memory, one part of `_slices` is read for so many files.
BUCKET_ROWS = 1 << 18
PLAN_FILES = 64
_SLICES = pa.schema(
    [("file", pa.int64()), ("first", pa.int64()), ("rows", pa.int64()), ("place", pa.list_(pa.int64()))]
)


@dataclass(frozen=True)
class Inputs:
    """The files of a run."""

    captions: list[File]
    images: list[File]


def plan(config: Config) -> Inputs:
    """Finds the files and looks at their columns. Raises AuditError or UsageError that names what is missing."""
    return Inputs(find_captions(config), find_images(config))


def find_captions(config: Config) -> list[File]:
    """Find the files of captions. Of a folder, images and files of no known format are left out.

    Raises AuditError or UsageError that names what is missing.
    """
    found = find(config.captions.path, "captions")
    captions = _among(found) if any(map(is_folder, paths_of(config.captions.path))) else found
    if caption_files.may_hold(captions):
        images = find(config.images.path, "images") if config.images else []
        captions = caption_files.with_sidecars(captions, [*found, *images])
    captions_of.check(captions, config.captions)
    return captions


def _among(files: list[File]) -> list[File]:
    """The captions among the files of a folder.

    The metadata of an imagefolder stands for all of its files. Of the tar and the Parquet file of an img2dataset shard
    the Parquet file is read: it also has the rows that were not downloaded.
    """
    metadata = [file for file in files if is_metadata(file)]
    stems = {os.path.splitext(file.uri)[0] for file in files if file.name.endswith(".parquet")}
    captions = metadata or [
        file
        for file in files
        if not (file.name.endswith(".tar") and os.path.splitext(file.uri)[0] in stems)
        and (captions_of.known(file.name) or file.name.endswith(caption_files.SUFFIXES))
    ]
    return captions or files


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
            Step("ingest: rows", "rows", "rows", run.ledger, rows_of, lost_row),
            list(shards_of(slices, run.config, inputs.images, buckets, sample)),
        )
        if not run.manifest.refresh("rows"):
            ask = f'`crossaudit query {run.config.out} "from errors"` says why.'
            raise AuditError(f"none of {taken} rows has a caption", where=inputs.captions[0].uri, do=ask)
        pairing.run(run, inputs.captions)
        step = Step("ingest: captions", "captions", "buckets", run.ledger, _distinct)
        run.execute(step, [Shard(f"{bucket:05d}", None, bucket, bucket + 1) for bucket in range(buckets)])
        caption_groups.run(run)
        stage |= {"rows_in": total, "rows_out": run.manifest.refresh("rows")}
        for table in ("captions", "caption_groups"):
            run.manifest.refresh(table)


def fingerprints(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What the manifest keeps of each input file."""
    screen = config.calibration.screen
    names = [config.calibration.captions, *(precomputed.files(screen) if screen else [])]
    nulls = [File(name, name, 0) for name in names]
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


def _distinct(worker: Worker, shard: Shard) -> Tables:
    """One bucket: each text once in the whole run, ordered by id."""
    found = worker.ledger.between(TEXTS, "bucket", shard.start, shard.start + 1)
    grouped = found.group_by("caption_id", use_threads=False)
    table = grouped.aggregate([("caption", "first"), ("copies", "sum")])
    columns = [table[name] for name in ("caption_id", "caption_first", "copies_sum")]
    return {"captions": pa.table(columns, schema=schema.CAPTIONS).sort_by("caption_id")}
