"""Embed: compute one vector per training image and embedder, and record unreadable images in `errors`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.image_vectors import unreadable, vectors_at
from pipelines.tables.embeddings import refreshed, table
from pipelines.tables.training_images import IMAGES, listed

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


def run(run: Run) -> None:
    """Write the embeddings of the training images, if there are any."""
    if run.config.images is None:
        return
    embedders = run.config.confirm.embedders
    with run.stage("embed", "images") as stage:
        shards = []
        for name in run.ledger.parts(IMAGES):
            shards += slices(name, name, run.ledger.rows(IMAGES, name), run.config.engine.shard_rows)
        on_lost_row = partial(_on_lost_row, embedders=embedders)
        step = Step("embed", table(embedders[0]), "images", run.ledger, _embed, on_lost_row, tuple(embedders))
        run.execute(step, shards)
        stage.rows_in = listed(run.ledger)
        stage.rows_out = refreshed(run)


def _embed(worker: Worker, shard: Shard) -> Tables:
    return vectors_at(worker, worker.ledger.slice(IMAGES, shard.source, shard.start, shard.stop))


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str, embedders: Sequence[str]) -> Tables:
    [place] = ledger.slice(IMAGES, shard.source, shard.start, shard.stop).to_pylist()
    # No embedder is loaded here. The width does not matter, because a table with rows replaces the empty one.
    empty = {table(name): schema.embeddings(1).empty_table() for name in embedders}
    return empty | {"errors": errors_table([unreadable(place, kind, message)])}
