"""Bound how many members of a finite population have a property, from a random sample without replacement.

All bounds are on the number K of members with the property. They are exact: they hold at their level for every K, for
every population size and for every sample size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from scipy.special import betaln

from audit.errors import AuditError


def at_most(k: int, n: int, population: int, alpha: float) -> int:
    """Compute the one-sided upper bound on K (hypergeometric).

    Args:
        k: Number of sampled members with the property.
        n: Sample size.
        population: Population size.
        alpha: Probability that the bound is below K.

    Returns:
        The largest K under which at most k of n have the property with a probability above `alpha`.

    Raises:
        AuditError: The counts contradict each other.
    """
    _check(k, n, population)
    return last(k, population - (n - k), lambda marked: stats.hypergeom.cdf(k, population, marked, n) > alpha)


def at_least(k: int, n: int, population: int, alpha: float) -> int:
    """Compute the one-sided lower bound on K (hypergeometric).

    Args:
        k: Number of sampled members with the property.
        n: Sample size.
        population: Population size.
        alpha: Probability that the bound is above K.

    Returns:
        The smallest K under which at least k of n have the property with a probability above `alpha`.

    Raises:
        AuditError: The counts contradict each other.
    """
    return population - at_most(n - k, n, population, alpha)


def sample_needed(high: int, population: int, alpha: float) -> int:
    """Compute the smallest sample that bounds K by `high` if no sampled member has the property.

    Args:
        high: The bound to reach.
        population: Population size.
        alpha: Probability that the bound is below K.
    """
    missed = last(0, population, lambda n: stats.hypergeom.pmf(0, population, min(high + 1, population), n) > alpha)
    return min(missed + 1, population)


def sequence(k: int, n: int, population: int, alpha: float, share: float = 0.01) -> tuple[int, int]:
    """Compute a confidence interval of K that may be looked at after every draw.

    The intervals at all n hold together with a probability of at least 1 - alpha, so sampling may stop whenever an
    interval is satisfactory. This is the prior-posterior ratio of Waudby-Smith and Ramdas (2020, arXiv 2006.04347,
    theorem 2.1): a mixture over K with the prior beta-binomial(1, 1 / share).

    Args:
        k: Number of members with the property among the first n draws.
        n: Number of draws so far.
        population: Population size.
        alpha: Probability that any of the intervals misses K.
        share: The share of members with the property near which the interval is narrowest. It has to be chosen before
            the first draw; the interval holds at its level for every choice.

    Returns:
        (low, high), both inclusive.

    Raises:
        AuditError: The counts contradict each other.
    """
    _check(k, n, population)
    rest, weight = population - n, 1 / share
    log_mixture = betaln(1 + k, weight + n - k) - betaln(1, weight)

    def holds(marked: int) -> bool:
        """Tell whether the draws are likely enough, compared with the mixture, if `marked` have the property."""
        log_likelihood = _log_choose(rest, marked - k) - _log_choose(population, marked)
        return bool(log_likelihood > log_mixture + np.log(alpha))

    # The likelihood has one peak, and there it is at least that of the mixture, so the interval is not empty.
    peak = min(max(k, (population + 1) * k // n if n else 0), k + rest)
    return peak - last(0, peak - k, lambda below: holds(peak - below)), last(peak, k + rest, holds)


def _log_choose(n: int, k: int) -> float:
    """Return the logarithm of the binomial coefficient, n over k."""
    return float(-betaln(n - k + 1, k + 1) - np.log1p(n))


def last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the largest integer of low..high for which `holds`, which is true at `low` and changes once."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _check(k: int, n: int, population: int) -> None:
    if not 0 <= k <= n <= population:
        raise AuditError(
            f"{k} of a sample of {n} from {population} is not possible", hint="Give 0 <= k <= n <= population."
        )
