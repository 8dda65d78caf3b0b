"""Generate: run full denoising for the selected captions and the highest-scoring control captions."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.context import Run
from pipelines.steps import held_out_pairs
from pipelines.steps.generation import generate
from pipelines.tables import selection
from pipelines.tables.calibration import CONTROL_CAPTIONS, load_calibration


def run(run: Run) -> None:
    """Write `generations` for the selected captions and, if there are training images, for control captions."""
    # With `select.until`, the stage confirm generates the sample, round by round.
    how = ("budget", "sample") if run.config.select.until is None else ("budget",)
    captions_of = {"discover": selection.selected(run.ledger, *how)}
    if run.config.images is not None:
        captions_of["control"] = _highest_controls(run)
        if run.config.calibration.pairs is not None:
            captions_of["pair"] = held_out_pairs.choose(run)
    with run.stage("generate", "captions") as stage:
        generate(run, "generate", captions_of, run.config.generate.seeds)
        if "control" in captions_of:
            counts = {name: len(captions) for name, captions in captions_of.items()}
            pairs = f", {counts['pair']:,} held-out pairs" if "pair" in counts else ""
            run.progress.note(f"{counts['discover']:,} selected and {counts['control']:,} control captions{pairs}")
        stage.rows_in = sum(map(len, captions_of.values()))
        stage.rows_out = run.manifest.refresh("generations")


def _highest_controls(run: Run) -> pa.Table:
    """Return (caption_id, caption) of the control captions with the highest scores."""
    control_table = run.ledger.read("control_screen")
    scores = load_calibration(run.ledger).score(control_table)
    best = scores.sort_by([("score", "descending"), ("caption", "ascending")])
    captions = run.ledger.read(CONTROL_CAPTIONS, "00000", ["caption_id", "caption"])
    chosen = best["caption"].slice(0, run.config.confirm.control_captions)
    return captions.take(pc.index_in(chosen, value_set=captions["caption"].combine_chunks()))
