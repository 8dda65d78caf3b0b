"""Perturb: score variants of each selected caption, and compare the caption with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.screening import screen_errors
from pipelines.tables import selection
from pipelines.tables.calibration import CONTROL_CAPTIONS, load_calibration

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Working table: the captions that are perturbed.
PERTURBED = "_perturbed"


def run(run: Run) -> None:
    """Write `perturbations` if `select.perturbation_margin` is set."""
    if not run.config.select.perturbation_margin:
        return
    with run.stage("perturb", "captions") as stage:
        captions = selection.selected(run.ledger)
        run.ledger.write(PERTURBED, "00000", captions)
        step = Step("perturb", "perturbations", "captions", run.ledger, _perturb, _on_lost_row, run.config.scoring())
        shards = slices("", PERTURBED, len(captions), run.config.engine.shard_rows)
        run.execute(step, shards)
        stage.rows_in, stage.rows_out = len(captions), run.manifest.refresh("perturbations")


def _perturb(worker: Worker, shard: Shard) -> Tables:
    from audit.explaining.perturbations import content_words, perturbation_margin

    if PERTURBED not in worker.cache:
        control = worker.ledger.read(CONTROL_CAPTIONS, "00000", ["caption"])["caption"].to_pylist()
        worker.cache[PERTURBED] = load_calibration(worker.ledger), content_words(control)
    calibration, words = worker.cache[PERTURBED]
    captions = worker.ledger.slice(PERTURBED, "00000", shard.start, shard.stop)
    texts = captions["caption"].to_pylist()
    found = perturbation_margin(
        worker.model, calibration, texts, words, worker.config.screen.batch_size, worker.reference
    )
    table = pa.table([captions["caption_id"], found["perturbation_margin"]], schema=schema.PERTURBATIONS)
    return {"perturbations": table, "errors": errors_table([])}


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    ids = ledger.slice(PERTURBED, "00000", shard.start, shard.stop)["caption_id"]
    table = pa.table([ids, pa.nulls(len(ids), pa.float64())], schema=schema.PERTURBATIONS)
    return {"perturbations": table, "errors": screen_errors("perturb", ids.to_pylist(), kind, message)}
