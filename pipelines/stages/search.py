"""Search: build the inverted files for the search of training images, and check the backgrounds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables
from audit.search import inverted_file
from pipelines.engine.context import Run
from pipelines.engine.manifest import stored
from pipelines.engine.step import Step
from pipelines.steps.image_search import BACKGROUND_NEIGHBOURS, IVF, index_of
from pipelines.tables import embeddings

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


def check(run: Run) -> None:
    """Raise AuditError unless the backgrounds hold vectors from the embedders that this run has loaded."""
    for name in run.config.confirm.embedders if run.config.images else ():
        path = run.config.embedder(name).background
        if path is None:
            continue
        manifest = stored(Ledger(path))
        hint = "Build one with `crossaudit index` from other images and this audit's embedders."
        if manifest is None or manifest.finished is None:
            raise AuditError(f"confirm.{name}.background is not a finished index", where=path, hint=hint)
        if manifest.models.get(name) != run.manifest.data.models[name]:
            raise AuditError(f"the vectors of this background come from another {name}", where=path, hint=hint)
        if sum(manifest.parts.get(embeddings.table(name), {}).values()) < BACKGROUND_NEIGHBOURS:
            raise AuditError(f"a background needs at least {BACKGROUND_NEIGHBOURS} images", where=path, hint=hint)


def run(run: Run) -> None:
    """Build the configured inverted files that do not exist yet."""
    if run.config.images is None or run.config.index.type != "ivf":
        return
    for name in run.config.confirm.embedders:
        if run.ledger.parts(embeddings.table(name)) and name not in index_of(run.config, name).parts(IVF):
            step = Step(f"index: {name}", IVF, "embedders", run.ledger, _build)
            run.execute(step, [Shard(name, name, 0, 1)])


def _build(worker: Worker, shard: Shard) -> Tables:
    ledger, name = worker.ledger, shard.source
    table = embeddings.table(name)
    images = sum(count for count, _ in embeddings.readers(ledger, table))
    width = next(len(vectors_NE[0]) for _, vectors_NE in embeddings.embedded(ledger, table) if len(vectors_NE))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.faiss")
        recipe = inverted_file.build(
            lambda: (part for _, part in embeddings.embedded(ledger, table)), images, width, file
        )
        ledger.put(file, IVF)
    return {IVF: pa.table([[recipe], [images]], schema=schema.INVERTED_FILES)}
