"""Ingest: account for every input row, list every caption once, and group near-identical captions.

Files are cut into slices, and consecutive slices form the shards that write `rows`. Buckets by the hash of
`caption_id` write `captions`, and `pipelines.steps.caption_groups` writes `caption_groups`. The images are listed
before the rows, so that each row can name its own image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from audit.record.manifest_entries import Accounting
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.reading import captions as captions_of
from pipelines.reading.files import File
from pipelines.reading.input_files import Inputs
from pipelines.reading.sampling import Sample
from pipelines.reading.slices import Slice
from pipelines.steps import caption_groups, pairing, sidecars
from pipelines.steps.image_list import list_images
from pipelines.steps.input_rows import BUCKET_ROWS, TEXTS, on_lost_row, rows_of, shards_of

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Working table: the slices of the caption files.
SLICES = "_slices"
# Number of files per part of `_slices`.
PLAN_FILES = 64
_SLICES = pa.schema(
    [("file", pa.int64()), ("first", pa.int64()), ("rows", pa.int64()), ("place", pa.list_(pa.int64()))]
)


def run(run: Run, inputs: Inputs) -> None:
    """Write `rows`, `captions` and `caption_groups`. The manifest must already have the fingerprints of `inputs`."""
    config = run.config.captions
    with run.stage("ingest", "rows") as stage:
        slices = _plan(run, inputs.captions)
        total = sum(part.rows for part in slices)
        sample = Sample(config.sample, total, config.seed) if config.sample and config.sample < total else None
        taken = total if sample is None else sample.size
        run.manifest.data.accounting = Accounting(input_rows=total, sampled_out=total - taken)
        sidecars.run(run, inputs.captions, slices, inputs.images)
        list_images(run, inputs.images)
        buckets = -(-taken // BUCKET_ROWS)
        of_buckets = [Shard(f"{bucket:05d}", None, bucket, bucket + 1) for bucket in range(buckets)]
        distinct = Step("ingest: captions", "captions", "buckets", run.ledger, _distinct)
        complete = distinct.done() >= {shard.name for shard in of_buckets}
        rows = Step("ingest: rows", "rows", "rows", run.ledger, rows_of, on_lost_row, also=() if complete else (TEXTS,))
        run.execute(rows, list(shards_of(slices, run.config, inputs.images, buckets, sample)))
        if not run.manifest.refresh("rows"):
            ask = f'`crossaudit query {run.config.out} "from errors"` shows why.'
            raise AuditError(f"none of the {taken} rows has a caption", where=inputs.captions[0].uri, hint=ask)
        pairing.run(run, inputs.captions)
        run.execute(distinct, of_buckets)
        caption_groups.run(run)
        stage.rows_in, stage.rows_out = total, run.manifest.refresh("rows")
        for table in ("captions", "caption_groups"):
            run.manifest.refresh(table)


def _plan(run: Run, files: list[File]) -> list[Slice]:
    """Return the slices of all files in order, and write them into the manifest."""
    shards = [
        Shard(f"{at // PLAN_FILES:05d}", (at, files[at : at + PLAN_FILES]), 0, len(files[at : at + PLAN_FILES]))
        for at in range(0, len(files), PLAN_FILES)
    ]
    run.execute(Step("ingest: files", SLICES, "files", run.ledger, _slices, _on_lost_slice), shards)
    slices = []
    planned: dict[int, list[list[int]]] = {}
    for row in run.ledger.read(SLICES).to_pylist():
        slices.append(Slice(files[row["file"]], row["first"], row["rows"], tuple(row["place"])))
        planned.setdefault(row["file"], []).append([row["rows"], *row["place"]])
    run.manifest.slices({file.uri: planned.get(number, []) for number, file in enumerate(files)})
    if not slices:
        raise AuditError("the dataset has no rows", where=files[0].uri, hint="Check `captions` in the configuration.")
    return slices


def _slices(worker: Worker, shard: Shard) -> Tables:
    before, files = shard.source
    found, errors = [], []
    for number in range(before + shard.start, before + shard.stop):
        slices, problems = captions_of.plan(files[number - before], worker.config.captions)
        errors += problems
        found += [{"file": number, "first": s.first, "rows": s.rows, "place": s.place} for s in slices]
    return {SLICES: pa.Table.from_pylist(found, schema=_SLICES), "errors": errors_table(errors)}


def _on_lost_slice(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    error = captions_of.unreadable(shard.source[1][shard.start], message[:300])
    return {SLICES: _SLICES.empty_table(), "errors": errors_table([error])}


def _distinct(worker: Worker, shard: Shard) -> Tables:
    """Return the distinct captions of one bucket, ordered by id. No caption is in two buckets."""
    found = worker.ledger.between(TEXTS, "bucket", shard.start, shard.start + 1)
    grouped = found.group_by("caption_id", use_threads=False)
    table = grouped.aggregate([("caption", "first"), ("row_count", "sum")])
    columns = [table[name] for name in ("caption_id", "caption_first", "row_count_sum")]
    return {"captions": pa.table(columns, schema=schema.CAPTIONS).sort_by("caption_id")}
