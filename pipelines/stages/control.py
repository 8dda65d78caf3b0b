"""Control: each selected caption's score beside those of variants of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.screening import screen_errors
from pipelines.tables import selection
from pipelines.tables.calibration import NULLS, load_calibration

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Working table: the captions that are controlled.
CONTROLLED = "_controlled"


def run(run: Run) -> None:
    if not run.config.select.self_control:
        return
    with run.manifest.stage("control") as stage:
        captions = selection.selected(run.ledger)
        run.ledger.write(CONTROLLED, "00000", captions)
        step = Step("control", "controls", "captions", run.ledger, _control, _left, run.config.scoring())
        shards = slices("", CONTROLLED, len(captions), run.config.engine.shard_rows)
        run.execute(step, shards)
        stage |= {"rows_in": len(captions), "rows_out": run.manifest.refresh("controls")}


def _control(worker: Worker, shard: Shard) -> Tables:
    from audit.explaining.perturbations import content_words, self_control

    if CONTROLLED not in worker.cache:
        null = worker.ledger.read(NULLS, "00000", ["caption"])["caption"].to_pylist()
        worker.cache[CONTROLLED] = load_calibration(worker.ledger), content_words(null)
    calibration, words = worker.cache[CONTROLLED]
    captions = worker.ledger.slice(CONTROLLED, "00000", shard.start, shard.stop)
    texts = captions["caption"].to_pylist()
    found = self_control(worker.model, calibration, texts, words, worker.config.screen.batch_size, worker.reference)
    table = pa.table([captions["caption_id"], found["self_control"]], schema=schema.CONTROLS)
    return {"controls": table, "errors": errors_table([])}


def _left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    ids = ledger.slice(CONTROLLED, "00000", shard.start, shard.stop)["caption_id"]
    table = pa.table([ids, pa.nulls(len(ids), pa.float64())], schema=schema.CONTROLS)
    return {"controls": table, "errors": screen_errors("control", ids.to_pylist(), kind, message)}
