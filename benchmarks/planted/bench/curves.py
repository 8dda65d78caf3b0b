"""Compute the curves of PlantedBench: true against false positives, and copies found against generations spent."""

from __future__ import annotations

import numpy as np

from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.tables import Scores

# Shapes: P positives, N negatives.

RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BUDGETS = (10, 20, 50, 100, 200, 300, 500, 800, 1200, 2000, 3000, 5000)
Curve = list[tuple[float, float]]


def roc(labels: Labels, scores: dict[str, Scores]) -> dict[str, Curve]:
    """Return for each detector the share of reproducing captions above the score of a share of never-trained ones.

    Args:
        labels: The labels of a model.
        scores: The score of each caption, by detector.
    """
    positives, negatives = labels.positives(), labels.negatives("never")
    found = {}
    for detector, score in scores.items():
        positive_P = np.array([score[c] for c in positives if c in score])
        negative_N = np.sort([score[c] for c in negatives if c in score])[::-1]
        if len(positive_P) and len(negative_N):
            allowed = [int(rate * len(negative_N) + 1e-9) for rate in RATES]
            limits = [negative_N[n] if n < len(negative_N) else -np.inf for n in allowed]
            found[detector] = [
                (rate, float((positive_P > limit).mean())) for rate, limit in zip(RATES, limits, strict=True)
            ]
    return found


def found_by_budget(labels: Labels, scores: dict[str, Scores]) -> dict[str, Curve]:
    """Return for each detector the share of memorized pictures found after a number of generated captions.

    A picture, or a template, is found once a caption that reproduces it is among the generated ones. All captions of
    the model compete for the budget but the control captions.

    Args:
        labels: The labels of a model.
        scores: The score of each caption, by detector; those that lack captions of a kind are left out.
    """
    competing = [caption for caption, kind in labels.kind.items() if kind != "control"]
    cluster = {caption: labels.cluster[caption] for caption in competing if labels.pixels.get(caption, 0) > 0}
    total = len(set(cluster.values()))
    found = {}
    for detector, score in scores.items():
        ranked = sorted((caption for caption in competing if caption in score), key=lambda c: -score[c])
        if not total or len(ranked) < BUDGETS[-1]:
            continue
        found[detector] = [
            (float(budget), len({cluster[c] for c in ranked[:budget] if c in cluster}) / total) for budget in BUDGETS
        ]
    return found
