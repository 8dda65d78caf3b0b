"""Compute the curves of PlantedBench: true against false positives, and copies found against generations spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.planted.bench.tables import Scores, reproduced
from benchmarks.planted.bench.truth import PLANTED

# Shapes: P positives, N negatives.

RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BUDGETS = (10, 20, 50, 100, 200, 300, 500, 800, 1200, 2000, 3000, 5000)
Curve = list[tuple[float, float]]


def roc(folder: Path, scores: dict[str, Scores]) -> dict[str, Curve]:
    """Return for each detector the share of reproducing captions above the score of a share of never-trained ones.

    Args:
        folder: The folder of a measured model.
        scores: The score of each caption, by detector.
    """
    captions, hits = pq.read_table(folder / "captions.parquet").to_pylist(), _hits(folder)
    kind = {row["caption"]: row["kind"] for row in captions}
    found = {}
    for detector, score in scores.items():
        positive_P = np.array([s for c, s in score.items() if kind[c] in PLANTED and hits.get(c, 0) > 0])
        negative_N = np.sort([s for c, s in score.items() if kind[c] == "never" and hits.get(c, 0) == 0])[::-1]
        if len(positive_P) and len(negative_N):
            allowed = [int(rate * len(negative_N) + 1e-9) for rate in RATES]
            limits = [negative_N[n] if n < len(negative_N) else -np.inf for n in allowed]
            found[detector] = [
                (rate, float((positive_P > limit).mean())) for rate, limit in zip(RATES, limits, strict=True)
            ]
    return found


def found_by_budget(folder: Path, scores: dict[str, Scores]) -> dict[str, Curve]:
    """Return for each detector the share of memorized pictures found after a number of generated captions.

    A picture, or a template, is found once a caption that reproduces it is among the generated ones. All captions of
    the model compete for the budget but the control captions.

    Args:
        folder: The folder of a measured model.
        scores: The score of each caption, by detector; those that lack captions of a kind are left out.
    """
    rows = [row for row in pq.read_table(folder / "captions.parquet").to_pylist() if row["kind"] != "control"]
    hits = _hits(folder)
    cluster = {row["caption"]: row["cluster"] for row in rows if hits.get(row["caption"], 0) > 0}
    total = len(set(cluster.values()))
    found = {}
    for detector, score in scores.items():
        ranked = sorted((row["caption"] for row in rows if row["caption"] in score), key=lambda c: -score[c])
        if not total or len(ranked) < BUDGETS[-1]:
            continue
        found[detector] = [
            (float(budget), len({cluster[c] for c in ranked[:budget] if c in cluster}) / total) for budget in BUDGETS
        ]
    return found


def _hits(folder: Path) -> dict[str, int]:
    return reproduced(pq.read_table(folder / "truth.parquet"))
