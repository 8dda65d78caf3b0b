"""Screen the captions of a model with every detector, and score them against its control captions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import audit
from audit.detectors import RUN, SCORES, SCREEN
from benchmarks.planted.bench.truth import BATCH, ORDINARY, some

SEED = 0
SEVERAL = (0, 1, 2, 3)
ONE_SEED = tuple(name for name in SCREEN if name != "seed_agreement")


def measure(model: audit.Model, folder: Path) -> pa.Table:
    """Screen all captions of a model from one seed: planted, never trained, control, odd, and some ordinary ones.

    Args:
        model: The model.
        folder: The model's folder.
    """
    captions = pq.read_table(folder / "captions.parquet")
    ordinary = some(captions, "ordinary", ORDINARY)
    rest = captions.filter(pc.field("kind") != "ordinary")["caption"].to_pylist()
    return audit.screen(model, ordinary + rest, [SEED], ONE_SEED, BATCH)


def scores(folder: Path, detector: str) -> dict[str, float]:
    """Return a detector's score of each caption, calibrated on the control captions of the same table.

    Args:
        folder: The model's folder, with `screen.parquet` and `runs.parquet`.
        detector: The detector.
    """
    assert detector in SCORES
    table = pq.read_table(folder / ("runs.parquet" if detector in RUN else "screen.parquet"))
    captions = pq.read_table(folder / "captions.parquet")
    control = pc.is_in(table["caption"], captions.filter(pc.field("kind") == "control")["caption"].combine_chunks())
    scored = audit.calibrate(table.filter(control), detector).score(table.filter(pc.invert(control)))
    return dict(zip(scored["caption"].to_pylist(), scored["score"].to_pylist(), strict=True))
