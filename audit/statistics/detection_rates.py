"""Measure how well a score separates captions whose truth is known.

Shapes: P positives, N negatives, C clusters of captions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# A rate at which fewer negatives than this are expected above the threshold is not measured, but guessed.
FEWEST_ABOVE = 5
# With fewer clusters, the spread of resampled clusters says little about that of new ones.
FEWEST_CLUSTERS = 10
DRAWS = 1000


def tpr_at(fpr: float, positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Compute the best true-positive rate at a false-positive rate of at most `fpr` (docs/explanation/claims.md).

    A caption is flagged if its score is strictly above the threshold, so a tie with a negative never helps.

    Args:
        fpr: Highest false-positive rate allowed, 0 to 1.
        positive: Scores of captions that are memorized.
        negative: Scores of captions that are not.

    Returns:
        The fraction of positives above the threshold.
    """
    sample = _Sample(positive, negative)
    return sample.tpr(fpr, *sample.ones())


def auroc(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Compute the area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    sample = _Sample(positive, negative)
    return sample.auroc(*sample.ones())


@dataclass(frozen=True)
class Estimate:
    """Hold a figure with its interval, and why one of them is missing.

    Attributes:
        value: The figure, or None if it is not measured.
        low: The lower end of the 95 % interval, or None.
        high: The upper end, or None.
        reason: Why the figure or its interval is missing; empty if nothing is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class DetectionRates:
    """Hold how well a score separates positives from negatives.

    Attributes:
        positives: Number of positives with a score.
        positive_clusters: Number of clusters that they form.
        negatives: Number of negatives with a score.
        negative_clusters: Number of clusters that they form.
        auroc: The area under the ROC curve.
        tpr_at_1_percent: The true-positive rate at a false-positive rate of at most 1 %.
        tpr_at_01_percent: The same at 0.1 %.
    """

    positives: int
    positive_clusters: int
    negatives: int
    negative_clusters: int
    auroc: Estimate
    tpr_at_1_percent: Estimate
    tpr_at_01_percent: Estimate


def detection_rates(
    positive: npt.ArrayLike,
    negative: npt.ArrayLike,
    positive_clusters: npt.ArrayLike,
    negative_clusters: npt.ArrayLike,
    seed: int = 0,
) -> DetectionRates:
    """Measure how well a score separates positives from negatives, with intervals by a bootstrap over clusters.

    Near-identical captions score alike, so whole clusters are drawn with replacement (cluster bootstrap, Davison and
    Hinkley 1997, section 3.8), and the interval is that of the 2.5 % and 97.5 % quantiles.

    Args:
        positive: Scores of captions that are memorized [P].
        negative: Scores of captions that are not [N].
        positive_clusters: The cluster of each positive, as a number [P].
        negative_clusters: The cluster of each negative [N]. Positives and negatives may share clusters.
        seed: The seed of the bootstrap.

    Returns:
        The figures. A TPR is None unless at least FEWEST_ABOVE negatives are expected above the threshold.
    """
    sample = _Sample(positive, negative)
    labels = np.concatenate([np.asarray(positive_clusters, np.int64), np.asarray(negative_clusters, np.int64)])
    _, cluster = np.unique(labels, return_inverse=True)
    p, n = sample.sizes
    of_positive, of_negative = cluster[:p][sample.order_P], cluster[p:][sample.order_N]
    counts = len(np.unique(of_positive)), len(np.unique(of_negative))
    figures: dict[str, Callable[[Floats, Floats], float]] = {"auroc": sample.auroc}
    missing: dict[str, str] = {}
    for name, rate in (("tpr_at_1_percent", 0.01), ("tpr_at_01_percent", 0.001)):
        if n * rate >= FEWEST_ABOVE:
            figures[name] = lambda *weights, rate=rate: sample.tpr(rate, *weights)
        else:
            missing[name] = f"{n:,} negatives are too few: this rate needs {FEWEST_ABOVE / rate:,.0f}"
    if not p or not n:
        return DetectionRates(p, counts[0], n, counts[1], *[Estimate(None, reason="no positives or no negatives")] * 3)
    draws = (
        _draws(figures, of_positive, of_negative, int(cluster.max()) + 1, seed)
        if min(counts) >= FEWEST_CLUSTERS
        else {}
    )
    found = {name: _estimate(figure(*sample.ones()), draws.get(name)) for name, figure in figures.items()}
    found |= {name: Estimate(None, reason=reason) for name, reason in missing.items()}
    return DetectionRates(p, counts[0], n, counts[1], **found)


def _draws(
    figures: dict[str, Callable[[Floats, Floats], float]],
    of_positive: npt.NDArray[np.int64],
    of_negative: npt.NDArray[np.int64],
    clusters: int,
    seed: int,
) -> dict[str, Floats]:
    """Return the figures of resampled clusters. A draw without positives or without negatives is drawn again."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in figures}
    while len(found["auroc"]) < DRAWS:
        times_C = np.bincount(rng.integers(0, clusters, clusters), minlength=clusters).astype(np.float64)
        weights = times_C[of_positive], times_C[of_negative]
        if weights[0].any() and weights[1].any():
            for name, figure in figures.items():
                found[name].append(figure(*weights))
    return {name: np.array(values) for name, values in found.items()}


def _estimate(value: float, draws: Floats | None) -> Estimate:
    if draws is None:
        return Estimate(value, reason=f"no interval: it needs {FEWEST_CLUSTERS} clusters of positives and of negatives")
    if np.ptp(draws) == 0:
        return Estimate(value, reason="no interval: every draw of the bootstrap gives the same value")
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


class _Sample:
    """Scores in ascending order, so that figures of weighted captions take one pass.

    Weights are given in the ascending order of the scores (`order_P` and `order_N` sort the captions so).
    """

    def __init__(self, positive: npt.ArrayLike, negative: npt.ArrayLike) -> None:
        positive_P, negative_N = (np.asarray(scores, dtype=np.float64) for scores in (positive, negative))
        self.order_P, self.order_N = np.argsort(positive_P, kind="stable"), np.argsort(negative_N, kind="stable")
        self._positive_P, self._negative_N = positive_P[self.order_P], negative_N[self.order_N]
        self._below_P = np.searchsorted(self._negative_N, self._positive_P, side="left")
        self._up_to_P = np.searchsorted(self._negative_N, self._positive_P, side="right")

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self._positive_P), len(self._negative_N)

    def ones(self) -> tuple[Floats, Floats]:
        return np.ones(len(self._positive_P)), np.ones(len(self._negative_N))

    def auroc(self, weight_P: Floats, weight_N: Floats) -> float:
        total = np.concatenate([[0.0], np.cumsum(weight_N)])
        won_P = (total[self._below_P] + total[self._up_to_P]) / 2
        return float(weight_P @ won_P / (weight_P.sum() * weight_N.sum()))

    def tpr(self, fpr: float, weight_P: Floats, weight_N: Floats) -> float:
        allowed = np.floor(fpr * weight_N.sum() + 1e-9)
        # The first negative from the top at which more than `allowed` are reached is the threshold.
        reached_N = np.cumsum(weight_N[::-1])
        at = int(np.searchsorted(reached_N, allowed, side="right"))
        threshold = self._negative_N[::-1][at] if at < len(reached_N) else -np.inf
        above = np.searchsorted(self._positive_P, threshold, side="right")
        return float(weight_P[above:].sum() / weight_P.sum())
