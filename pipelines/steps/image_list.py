"""List the training images of all image files."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.reading import images as images_of
from pipelines.reading.files import File
from pipelines.tables.training_images import IMAGES

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


def list_images(run: Run, files: list[File]) -> None:
    """Write `_images`, the location of each training image. Raises AuditError if there are none."""
    if run.config.images is None:
        return
    shards = [Shard(f"{number:05d}", file, 0, 1) for number, file in enumerate(files)]
    work = partial(_list, column=run.config.images.column)
    run.execute(Step("ingest: images", IMAGES, "files", run.ledger, work, _on_lost_file), shards)
    if not any(run.ledger.rows(IMAGES, shard.name) for shard in shards):
        raise AuditError(
            f"no image in {len(files)} files", where=files[0].uri, hint="Check `images` in the configuration."
        )


def _list(worker: Worker, shard: Shard, column: str) -> Tables:
    file: File = shard.source
    places, problem = images_of.index(file, column)
    return {IMAGES: places, "errors": _file_error(file, problem) if problem else errors_table([])}


def _on_lost_file(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    return {IMAGES: images_of.INDEX.empty_table(), "errors": _file_error(shard.source, message)}


def _file_error(file: File, problem: str) -> pa.Table:
    return errors_table([{"stage": "embed", "file": file.name, "kind": "unreadable_file", "message": problem[:300]}])
