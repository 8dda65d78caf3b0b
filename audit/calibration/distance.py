"""Measure distances from control captions and how rare they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Shapes: N captions, M control captions, F features.

Floats = npt.NDArray[np.float64]
TAIL = 0.05  # fraction of the control captions to fit the tail on,
MIN_TAIL = 10  # but at least this many points
MAX_LOG_RATIO = 14.0  # the ratio of shape to scale times the mean excess is at most a million, or its reciprocal


def robust_scale(control_MF: Floats) -> tuple[Floats, Floats]:
    """Compute the median and the inverse scale of each feature: [F] each.

    The scale is the MAD, scaled to estimate a standard deviation. A constant feature has an inverse scale of 0.
    """
    median_F = np.median(control_MF, axis=0)
    scale_F = 1.4826 * np.median(np.abs(control_MF - median_F), axis=0)
    scale_F = np.where(scale_F > 0, scale_F, control_MF.std(axis=0))
    return median_F, np.divide(1.0, scale_F, out=np.zeros_like(scale_F), where=scale_F > 0)


@dataclass(frozen=True, eq=False)
class Distance:
    """Distance from control captions, in robust z-scores `z = (feature - median) / (1.4826 MAD)`.

    One-sided, it is the mean of the features' z-scores (of a single feature, its z-score), which is low for captions
    below the control captions. Otherwise it is the Mahalanobis distance of the z-scores (Ledoit and Wolf, 2004).

    Attributes:
        median: Median of each feature over control captions: [F].
        inverse_scale: Inverse scale of each feature; 0 for a constant feature, which then says nothing: [F].
        precision: Precision matrix of the z-scores: [F, F]; None if the distance is one-sided.
    """

    median: Floats
    inverse_scale: Floats
    precision: Floats | None

    @classmethod
    def fit(cls, control_MF: Floats, *, one_sided: bool) -> Distance:
        """Fit the distance to features [M, F] of control captions.

        Args:
            control_MF: Features of the control captions.
            one_sided: Whether only large values of the features are suspicious.
        """
        median_F, inverse_F = robust_scale(control_MF)
        if one_sided:
            return cls(median_F, inverse_F, None)
        from sklearn.covariance import LedoitWolf  # takes a second to import, and reading a calibration needs none

        fitted = LedoitWolf(assume_centered=True).fit((control_MF - median_F) * inverse_F)
        return cls(median_F, inverse_F, np.asarray(fitted.precision_, dtype=np.float64))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Distance:
        """Restore a distance from its JSON content."""
        precision = None if content["precision"] is None else np.array(content["precision"])
        return cls(np.array(content["median"]), np.array(content["inverse_scale"]), precision)

    def __call__(self, features_NF: Floats) -> Floats:
        """Compute the distances of features [N, F]: [N]; larger means less like the control captions."""
        z_NF = (features_NF - self.median) * self.inverse_scale
        if self.precision is None:
            return np.asarray(z_NF.mean(axis=1), dtype=np.float64)
        return np.asarray(np.sqrt(np.einsum("nf,fg,ng->n", z_NF, self.precision, z_NF)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Agreement:
    """Length of the mean unit vector over seeds, after subtracting the mean over control captions."""

    centre: Floats

    @classmethod
    def fit(cls, control_MF: Floats) -> Agreement:
        """Fit the centre to mean unit vectors [M, F] of control captions."""
        return cls(control_MF.mean(axis=0))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Agreement:
        """Restore an agreement from its JSON content."""
        return cls(np.array(content["centre"]))

    def __call__(self, features_NF: Floats) -> Floats:
        """Compute the lengths for features [N, F]: [N]; larger means that seeds agree more."""
        return np.asarray(np.linalg.norm(features_NF - self.centre, axis=1), dtype=np.float64)


def fit_distance(kind: str, control_MF: Floats) -> Distance | Agreement:
    """Fit the distance of a kind (`audit.detectors.detector.DistanceKind`) to control captions [M, F]."""
    return Agreement.fit(control_MF) if kind == "agreement" else Distance.fit(control_MF, one_sided=kind == "larger")


def distance_of_json(content: dict[str, Any]) -> Distance | Agreement:
    """Restore the distance of a saved calibration."""
    return Agreement.of_json(content) if "centre" in content else Distance.of_json(content)


@dataclass(frozen=True, eq=False)
class Survival:
    """Rarity of distances among control captions: empirical survival function with a generalised Pareto tail.

    Attributes:
        distances: Distances of the control captions, sorted.
        threshold: Their 95 % quantile, where the Pareto tail begins (Pickands, 1975).
        shape: Shape of the tail, >= 0. A shape of 0 is exponential; a bounded tail would let captions tie.
        scale: Scale of the tail.
    """

    distances: Floats
    threshold: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, control_M: Floats) -> Survival:
        """Fit the survival function to distances [M] of control captions."""
        sorted_M = np.sort(control_M)
        beyond = min(max(MIN_TAIL, int(np.ceil(TAIL * len(sorted_M)))), len(sorted_M) - 1)
        threshold = float(sorted_M[-beyond - 1])
        excess = sorted_M[-beyond:] - threshold
        excess = excess[excess > 0]
        if not len(excess):
            return cls(sorted_M, threshold, 0.0, 1.0)
        return cls(sorted_M, threshold, *_fit_tail(excess))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Survival:
        """Restore a survival function from its JSON content."""
        return cls(np.array(content["distances"]), content["threshold"], content["shape"], content["scale"])

    def minus_log(self, distance_N: Floats) -> Floats:
        """Compute -log of the survival at each distance: [N].

        The result is continuous and increasing, and strictly increasing beyond the control captions.
        """
        size = len(self.distances)
        knots, first_at = np.unique(self.distances, return_index=True)
        minus_log_knots = -np.log(1 - (first_at + 1) / (size + 1))
        value_N = np.interp(distance_N, knots, minus_log_knots)
        spread = self.distances[-1] - self.distances[0] or 1.0
        below_N = np.minimum(distance_N - knots[0], 0) / spread
        value_N = np.where(below_N < 0, minus_log_knots[0] * np.exp(below_N), value_N)
        excess_N = np.maximum(distance_N - self.threshold, 0) / self.scale
        tail_N = np.log1p(self.shape * excess_N) / self.shape if self.shape > 0 else excess_N
        at_threshold = float(np.interp(self.threshold, knots, minus_log_knots))
        return np.where(excess_N > 0, at_threshold + tail_N, value_N)


def _fit_tail(excess_T: Floats) -> tuple[float, float]:
    """Fit a generalised Pareto distribution of shape >= 0 to positive excesses [T] by maximum likelihood.

    For each ratio of shape to scale, the most likely shape has a closed form, so only the ratio is searched for
    (Grimshaw, 1993, Technometrics 35).

    Returns:
        Shape and scale. If no shape above 0 is more likely, the shape is 0 and the distribution exponential.
    """
    from scipy.optimize import minimize_scalar

    mean = float(excess_T.mean())

    def shape_at(log_ratio: float) -> float:
        return float(np.log1p(np.exp(log_ratio) * excess_T / mean).mean())

    def minus_log_likelihood(log_ratio: float) -> float:
        """Per excess, compared with the exponential distribution."""
        shape = shape_at(log_ratio)
        return float(np.log(shape) - log_ratio + shape)

    found = minimize_scalar(minus_log_likelihood, bounds=(-MAX_LOG_RATIO, MAX_LOG_RATIO), options={"xatol": 1e-8})
    if found.fun >= 0.0:
        return 0.0, mean
    shape = shape_at(found.x)
    return shape, shape * mean / float(np.exp(found.x))
