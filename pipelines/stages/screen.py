"""Screen: compute the columns of the detectors for every caption, from pure noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, slices
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.screening import failed_rows, screen_errors, screen_texts

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


def run(run: Run) -> None:
    """Write `screen`."""
    with run.stage("screen", "captions") as stage:
        shards = []
        for name in run.ledger.parts("captions"):
            shards += slices(name, name, run.ledger.rows("captions", name), run.config.engine.shard_rows)
        on_lost_row = partial(_on_lost_row, seeds=run.config.screen.seeds)
        run.execute(
            Step("screen", "screen", "captions", run.ledger, _screen, on_lost_row, run.config.scoring()), shards
        )
        stage.rows_in, stage.rows_out = sum(map(len, shards)), run.manifest.refresh("screen")


def _screen(worker: Worker, shard: Shard) -> Tables:
    captions = worker.ledger.slice("captions", shard.source, shard.start, shard.stop)
    table, errors = screen_texts(worker, captions, "screen")
    return {"screen": table, "errors": errors}


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str, seeds: Sequence[int]) -> Tables:
    captions = ledger.slice("captions", shard.source, shard.start, shard.stop)
    errors = screen_errors("screen", captions["caption_id"].to_pylist(), kind, message)
    return {"screen": failed_rows(schema.screen(()), captions, seeds, message), "errors": errors}
