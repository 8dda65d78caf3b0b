"""Generate: full denoising runs of selected captions, of null captions, and of confirmed ones with fresh seeds."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.context import Run
from pipelines.steps.generation import generate
from pipelines.tables import selection
from pipelines.tables.calibration import NULLS, load_calibration


def run(run: Run) -> None:
    captions_of = {"discover": selection.selected(run.ledger)}
    if run.config.images is not None:
        captions_of["null"] = _highest_nulls(run)
    with run.manifest.stage("generate") as stage:
        generate(run, "generate", captions_of, run.config.generate.seeds)
        stage["rows_in"] = sum(map(len, captions_of.values()))
        stage["rows_out"] = run.manifest.refresh("generations")


def _highest_nulls(run: Run) -> pa.Table:
    """The null captions that score highest: (caption_id, caption)."""
    null_table = run.ledger.read("null_screen")
    scores = load_calibration(run.ledger).score(null_table)
    best = scores.sort_by([("score", "descending"), ("caption", "ascending")])
    captions = run.ledger.read(NULLS, "00000", ["caption_id", "caption"])
    chosen = best["caption"].slice(0, run.config.confirm.null_captions)
    return captions.take(pc.index_in(chosen, value_set=captions["caption"].combine_chunks()))
