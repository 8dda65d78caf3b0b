"""Compare where two maps of a run say that the copy is with where a template family's region is.

Shapes: G generations, Q pixels of the map.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from audit.statistics.detection_rates import auroc
from benchmarks.planted.artwork import SIDE
from benchmarks.planted.bench.truth import SEEDS
from benchmarks.planted.dataset import TEMPLATE_ROWS

MASKS = ("region", "difference_region")


def compare(folder: Path) -> dict[str, Any]:
    """Return how well each map agrees with the shared region of template captions that reproduce it.

    Args:
        folder: The folder of a measured model.

    Returns:
        For each map, over generations: the mean AUROC of its pixels, inside against outside the region, and the mean
        intersection over union of the region with as many of its highest pixels. Empty if no template reproduces.
    """
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    copies = {r["caption"] for r in truth if r["pixels_region"] and r["seed"] == SEEDS[0]}
    rows = [r for r in pq.read_table(folder / "runs.parquet").to_pylist() if r["caption"] in copies]
    found: dict[str, Any] = {"generations": len(rows)}
    for name in MASKS if rows else ():
        maps = [_square(row[name]) for row in rows]
        inside = np.zeros(maps[0].shape, dtype=bool)
        inside[: len(inside) * TEMPLATE_ROWS // SIDE] = True
        separations, overlaps = [], []
        for values in maps:
            highest = values >= np.sort(values, axis=None)[-int(inside.sum())]
            separations.append(auroc(values[inside], values[~inside]))
            overlaps.append((highest & inside).sum() / (highest | inside).sum())
        found[name] = {"auroc": float(np.mean(separations)), "iou": float(np.mean(overlaps))}
    return found


def _square(value: Any) -> np.ndarray:
    if isinstance(value, bytes):
        return np.asarray(Image.open(io.BytesIO(value)), dtype=np.float64)
    values_Q = np.asarray(value, dtype=np.float64)
    return values_Q.reshape(int(np.sqrt(len(values_Q))), -1)
