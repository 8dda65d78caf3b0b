"""Calibrate: score captions that the model was never trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

import audit
from audit import schema
from audit.calibration.strata import control_scores
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger, Shard, Tables, slices
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.reading import precomputed
from pipelines.reading.control_captions import read_control_captions
from pipelines.steps import control_likeness
from pipelines.steps.screening import failed_rows, screen_errors, screen_texts
from pipelines.tables.calibration import CONTROL_CAPTIONS, NAME

if TYPE_CHECKING:
    from audit.calibration.calibration import Calibration
    from pipelines.engine.worker import Worker

# Working table: the control captions that are missing from a precomputed screen.
LACKING = "_lacking_control_captions"


def run(run: Run) -> None:
    """Screen the control captions, write `control_screen` and save the calibration."""
    config = run.config
    with run.stage("calibrate", "control captions") as stage:
        rows = run.ledger.rows(CONTROL_CAPTIONS, "00000")
        shards = slices("", CONTROL_CAPTIONS, rows, config.engine.shard_rows)
        if config.calibration.screen is not None:
            if not run.ledger.parts(LACKING):
                _take_precomputed(run)
            shards = slices("lacking-", LACKING, run.ledger.rows(LACKING, "00000"), config.engine.shard_rows)
        on_lost_row = partial(_on_lost_row, seeds=config.screen.seeds)
        step = Step("calibrate", "control_screen", "captions", run.ledger, _screen, on_lost_row, config.scoring())
        run.execute(step, shards)
        control_table = run.ledger.read("control_screen")
        data = run.manifest.data.calibration
        calibration = audit.calibrate(control_table, config.screen.detectors[0])
        if data.likeness is not None and data.likeness.unlike:
            data.p_unseen = f"withheld: the control captions are {control_likeness.describe(data.likeness)}"
            calibration = replace(calibration, withheld=data.p_unseen.removeprefix("withheld: "))
        _save(run.ledger, calibration)
        data.control_captions, data.detector = rows, calibration.detector
        data.fit, data.held_out = _halves(calibration, control_table)
        scores = control_scores(calibration, control_table)
        run.ledger.write("control_scores", "00000", scores)
        run.manifest.part("control_scores", "00000", len(scores))
        data.strata = data.strata or control_likeness.strata(run, scores)
        stage.rows_in, stage.rows_out = rows, run.manifest.refresh("control_screen")


def check_screen(run: Run) -> None:
    """Raise AuditError unless a precomputed screen was made with the loaded model and this configuration."""
    path = run.config.calibration.screen
    if path is None or run.manifest.finished or run.ledger.parts("control_screen"):
        return
    texts = read_control_captions(run.config.calibration.captions, run.config.calibration.column)
    table = precomputed.read(path, texts)
    context = pa.ipc.read_schema(pa.py_buffer(run.workers(run.config.scoring()).ask("context")))
    detector = run.config.screen.detectors[0]
    try:
        audit.calibrate(table, detector).score(context.empty_table())
    except UsageError:
        raise
    except AuditError as error:
        raise AuditError(error.what, where=path, hint=precomputed.HINT) from error


def _save(ledger: Ledger, calibration: Calibration) -> None:
    with tempfile.TemporaryDirectory() as folder:
        calibration.save(Path(folder) / NAME)
        ledger.write_bytes(NAME, (Path(folder) / NAME).read_bytes())


def _screen(worker: Worker, shard: Shard) -> Tables:
    captions = worker.ledger.slice(shard.source, "00000", shard.start, shard.stop)
    table, errors = screen_texts(worker, captions, "calibrate")
    for name in ("caption_group", "caption"):
        values = captions[name].take(pc.index_in(table["caption_id"], value_set=captions["caption_id"]))
        table = table.add_column(1, name, values)
    return {"control_screen": table, "errors": errors}


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str, seeds: Sequence[int]) -> Tables:
    captions = ledger.slice(shard.source, "00000", shard.start, shard.stop)
    table = failed_rows(schema.control_screen(()), captions, seeds, message)
    return {
        "control_screen": table,
        "errors": screen_errors("calibrate", captions["caption_id"].to_pylist(), kind, message),
    }


def _take_precomputed(run: Run) -> None:
    """Write the rows of a precomputed screen that `check_screen` accepted, and the captions that it lacks."""
    path = run.config.calibration.screen
    assert path is not None
    captions = run.ledger.read(CONTROL_CAPTIONS, "00000")
    table = precomputed.read(path, captions["caption"].to_pylist())
    at = pc.index_in(table["caption"], value_set=captions["caption"].combine_chunks())
    for name in ("caption_id", "caption_group"):
        table = table.append_column(name, captions[name].take(at))
    layout = schema.control_screen(schema.features_of(table.schema)).with_metadata(table.schema.metadata)
    run.ledger.write("control_screen", "00000", table.select(layout.names).cast(layout))
    known = pc.is_in(captions["caption"], value_set=table["caption"].combine_chunks())
    run.ledger.write(LACKING, "00000", captions.filter(pc.invert(known)))


def _halves(calibration: Calibration, control_table: pa.Table) -> tuple[int, int]:
    """Return how many control captions fit the distance and how many give p-values."""
    held_out = len(calibration.parts[0].survival.distances)
    scored = len(calibration.score(control_table))
    return scored - held_out, held_out
