"""Screen the captions of a model with every detector, and score them against its control captions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import audit
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import RUN, SCREEN
from benchmarks.planted.artwork import SIDE
from benchmarks.planted.bench.truth import CONTROL, FEW_OTHERS, NEVER, ORDINARY, PLANTED, some
from benchmarks.planted.sharpness import sharpness

SEED, BATCH = 0, 128
SEVERAL = (0, 1, 2, 3)
FOUR_SEEDS = ("caption_response", "attention_profile", "noise_magnitude", "seed_agreement")
SCREENED_NEVER, SCREENED_CONTROL = 5000, 2000  # a rate of 0.1 % needs as many
FEW_NEVER, FEW_CONTROL = 600, 500
ONE_SEED = tuple(name for name in SCREEN if name != "seed_agreement")


def measure(model: audit.Model, folder: Path) -> pa.Table:
    """Screen all captions of a model from one seed: planted, never trained, control, odd, and some ordinary ones.

    Args:
        model: The model.
        folder: The model's folder.
    """
    return audit.screen(model, _captions(folder), [SEED], ONE_SEED, BATCH)


def measure_some(model: audit.Model, folder: Path) -> pa.Table:
    """Screen some captions of a model of another family from one seed: planted, never trained, control and ordinary.

    Args:
        model: The model.
        folder: The model's folder.
    """
    captions = pq.read_table(folder / "captions.parquet")
    chosen = [c for kind in PLANTED for c in some(captions, kind)] + some(captions, "ordinary", FEW_OTHERS)
    chosen += some(captions, "never", FEW_NEVER) + some(captions, "control", FEW_CONTROL)
    return audit.screen(model, chosen, [SEED], ONE_SEED, BATCH)


def measure_half(model: audit.Model, folder: Path) -> pa.Table:
    """Screen the same captions with the default detector at half the width and height.

    Args:
        model: The model.
        folder: The model's folder.
    """
    return audit.screen(model, _captions(folder), [SEED], [DEFAULT_DETECTOR], BATCH, resolution=SIDE // 2)


def _captions(folder: Path) -> list[str]:
    """Return all captions of a model, but only some of the ordinary, control and never-trained ones."""
    captions = pq.read_table(folder / "captions.parquet")
    counts = {"ordinary": ORDINARY, "control": SCREENED_CONTROL, "never": SCREENED_NEVER}
    return [c for kind in pc.unique(captions["kind"]).to_pylist() for c in some(captions, kind, counts.get(kind))]


def measure_seeds(model: audit.Model, folder: Path) -> pa.Table:
    """Screen planted captions, and some never trained on and some control captions, from four seeds.

    Args:
        model: The model.
        folder: The model's folder.
    """
    captions = pq.read_table(folder / "captions.parquet")
    chosen = [c for kind in PLANTED for c in some(captions, kind)]
    chosen += some(captions, "never", NEVER) + some(captions, "control", CONTROL)
    return audit.screen(model, chosen, SEVERAL, FOUR_SEEDS, BATCH)


def measure_sharpness(model: audit.Model, folder: Path) -> pa.Table:
    """Compute the sharpness of Jeon et al. of planted captions and of some never trained on.

    Args:
        model: The model.
        folder: The model's folder.
    """
    captions = pq.read_table(folder / "captions.parquet")
    chosen = [c for kind in PLANTED for c in some(captions, kind)] + some(captions, "never", NEVER)
    return pa.table({"caption": chosen, "sharpness": sharpness(model, chosen, SEED, BATCH)})


def calibrated(folder: Path, table: pa.Table, detector: str) -> pa.Table:
    """Score the captions of a table by a detector that is calibrated on the control captions in it.

    Args:
        folder: The model's folder.
        table: What `audit.screen` or `audit.generate` returned.
        detector: The detector.

    Returns:
        The captions but the control captions, with `score` and `p_unseen`.
    """
    captions = pq.read_table(folder / "captions.parquet")
    control = pc.is_in(table["caption"], captions.filter(pc.field("kind") == "control")["caption"].combine_chunks())
    return audit.calibrate(table.filter(control), detector).score(table.filter(pc.invert(control)))


def scored(folder: Path, table: pa.Table, detector: str) -> dict[str, float]:
    """Return the score of each caption of a table, as `calibrated` computes it."""
    found = calibrated(folder, table, detector)
    return dict(zip(found["caption"].to_pylist(), found["score"].to_pylist(), strict=True))


def scores(folder: Path, detector: str) -> dict[str, float]:
    """Return the score of each caption that a detector gives from one seed.

    Args:
        folder: The model's folder, with `screen.parquet` and `runs.parquet`.
        detector: The detector.
    """
    return scored(folder, pq.read_table(folder / ("runs.parquet" if detector in RUN else "screen.parquet")), detector)
