"""Compute exact intervals, conformal p-values and false-discovery rates."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from audit.errors import AuditError

Floats = npt.NDArray[np.float64]


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the exact two-sided interval of a proportion (Clopper and Pearson, 1934).

    Args:
        k: Number of successes.
        n: Number of trials.
        confidence: Confidence level.

    Returns:
        (low, high).

    Raises:
        AuditError: Unless 0 <= k <= n and n >= 1.
    """
    _check_counts(k, n)
    tail = (1 - confidence) / 2
    low = _beta_quantile(tail, k, n - k + 1) if k > 0 else 0.0
    high = _beta_quantile(1 - tail, k + 1, n - k) if k < n else 1.0
    return low, high


def upper_bound(k: int, n: int, confidence: float = 0.95) -> float:
    """Compute the exact one-sided upper bound of a proportion: "at most this, at this confidence" (Clopper-Pearson).

    Args:
        k: Number of successes.
        n: Number of trials.
        confidence: Confidence level.

    Returns:
        The upper bound, between 0 and 1.

    Raises:
        AuditError: Unless 0 <= k <= n and n >= 1.
    """
    _check_counts(k, n)
    return _beta_quantile(confidence, k + 1, n - k) if k < n else 1.0


def conformal_p(control_scores: npt.ArrayLike, scores: npt.ArrayLike) -> Floats:
    """Compute `(1 + #{control score >= s}) / (1 + n)` for each score s, n control scores: [N] (Vovk et al., 2005)."""
    controls = np.asarray(control_scores, dtype=np.float64)
    return np.asarray((1 + count_at_least(controls, scores)) / (1 + len(controls)), dtype=np.float64)


def count_at_least(values: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Count, for each of N scores, the values that are at least as large: [N]."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return len(ordered) - np.searchsorted(ordered, np.asarray(scores, dtype=np.float64), side="left")


def q_values(p: npt.ArrayLike) -> Floats:
    """Compute Benjamini-Hochberg (1995) q-values [N] of p-values, in the order given."""
    p_N = np.asarray(p, dtype=np.float64)
    order = np.argsort(p_N)
    scaled = p_N[order] * len(p_N) / np.arange(1, len(p_N) + 1)
    q_N = np.empty_like(p_N)
    q_N[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q_N


def _beta_quantile(p: float, a: int, b: int) -> float:
    from scipy.stats import beta  # takes longer to import than a command that reads a configuration needs in all

    return float(beta.ppf(p, a, b))


def _check_counts(k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise AuditError(f"{k} of {n} is not a proportion", hint="Give 0 <= k <= n and n >= 1.")


def controls_needed(rate: float) -> int:
    """Compute how many control captions a threshold at `rate` needs: the smallest m with (m + 1) rate >= 1."""
    return math.ceil(1 / rate - 1 - 1e-9)  # 1 / 0.01 - 1 must not become 100
