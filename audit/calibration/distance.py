"""Distances from control captions, and how rare they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import genpareto
from sklearn.covariance import LedoitWolf

# Shapes: N captions, M control captions, F features.

Floats = npt.NDArray[np.float64]
TAIL = 0.05  # the share of the null that the tail is fitted on,
MIN_TAIL = 10  # but never fewer points


def robust_scale(control_MF: Floats) -> tuple[Floats, Floats]:
    """Median and inverse scale (MAD, as a standard deviation) of each feature: [F] each; a constant has inverse 0."""
    median_F = np.median(control_MF, axis=0)
    scale_F = 1.4826 * np.median(np.abs(control_MF - median_F), axis=0)
    scale_F = np.where(scale_F > 0, scale_F, control_MF.std(axis=0))
    return median_F, np.divide(1.0, scale_F, out=np.zeros_like(scale_F), where=scale_F > 0)


@dataclass(frozen=True, eq=False)
class Distance:
    """Mahalanobis distance after median/MAD scaling (Ledoit and Wolf, 2004); of one-sided features, the z-score."""

    median: Floats
    inverse_scale: Floats
    precision: Floats | None

    @classmethod
    def fit(cls, control_MF: Floats, *, one_sided: bool) -> Distance:
        """one_sided: there is one feature, and only large values are suspicious."""
        median_F, inverse_F = robust_scale(control_MF)
        if one_sided:
            return cls(median_F, inverse_F, None)
        fitted = LedoitWolf(assume_centered=True).fit((control_MF - median_F) * inverse_F)
        return cls(median_F, inverse_F, np.asarray(fitted.precision_, dtype=np.float64))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Distance:
        precision = None if content["precision"] is None else np.array(content["precision"])
        return cls(np.array(content["median"]), np.array(content["inverse_scale"]), precision)

    def __call__(self, features_NF: Floats) -> Floats:
        """[N, F] -> [N]; larger is less like the control captions."""
        z_NF = (features_NF - self.median) * self.inverse_scale
        if self.precision is None:
            return z_NF[:, 0]
        return np.asarray(np.sqrt(np.einsum("nf,fg,ng->n", z_NF, self.precision, z_NF)), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How long the mean over seeds of unit vectors is, once the mean of the control captions is taken off."""

    centre: Floats

    @classmethod
    def fit(cls, control_MF: Floats) -> Agreement:
        return cls(control_MF.mean(axis=0))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Agreement:
        return cls(np.array(content["centre"]))

    def __call__(self, features_NF: Floats) -> Floats:
        """[N, F] -> [N]; larger is more alike from seed to seed."""
        return np.asarray(np.linalg.norm(features_NF - self.centre, axis=1), dtype=np.float64)


def fit_distance(kind: str, control_MF: Floats) -> Distance | Agreement:
    """The distance of that kind (`audit.detectors.detector.DistanceKind`) from control captions."""
    return Agreement.fit(control_MF) if kind == "agreement" else Distance.fit(control_MF, one_sided=kind == "larger")


def distance_of_json(content: dict[str, Any]) -> Distance | Agreement:
    """What a saved calibration holds."""
    return Agreement.of_json(content) if "centre" in content else Distance.of_json(content)


@dataclass(frozen=True, eq=False)
class Survival:
    """How rare a distance is among control captions: the empirical survival, with a generalised Pareto tail.

    distances: of the control captions, sorted. Beyond the `threshold` (their 95 % quantile) exceedances follow a Pareto
    tail of `shape` >= 0 (Pickands, 1975; 0 is exponential, and a bounded tail would let captions tie) and `scale`.
    """

    distances: Floats
    threshold: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, control_M: Floats) -> Survival:
        sorted_M = np.sort(control_M)
        beyond = min(max(MIN_TAIL, int(np.ceil(TAIL * len(sorted_M)))), len(sorted_M) - 1)
        threshold = float(sorted_M[-beyond - 1])
        excess = sorted_M[-beyond:] - threshold
        excess = excess[excess > 0]
        if not len(excess):
            return cls(sorted_M, threshold, 0.0, 1.0)
        shape, _, scale = genpareto.fit(excess, floc=0)
        if shape <= 0:
            shape, scale = 0.0, excess.mean()
        return cls(sorted_M, threshold, float(shape), float(scale))

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Survival:
        return cls(np.array(content["distances"]), content["threshold"], content["shape"], content["scale"])

    def minus_log(self, distance_N: Floats) -> Floats:
        """-log of the survival at each distance: [N], continuous, increasing, and strictly so beyond the null."""
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
