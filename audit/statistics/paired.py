"""Compare two models caption by caption: exact tests of whether one copies more than the other.

Shapes: P captions that both models generated, C clusters of them, K clusters of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest

LEVEL = 0.05


@dataclass(frozen=True)
class PairedTest:
    """Hold how often two models differ, and how likely that is if they copy equally often.

    Attributes:
        appeared: Captions that only the second model copies.
        went: Captions that only the first model copies.
        p_more: One-sided p-value of McNemar's exact test: the second model copies more. Each caption counts alone.
        p_either: The two-sided p-value.
        clusters: Clusters in which more captions appeared than went, or the reverse.
        clustered_p_more: One-sided p-value with clusters as units. Decide by this one.
        clustered_p_either: The two-sided p-value.
        smallest_p: The smallest one-sided p-value that this number of clusters can give.
    """

    appeared: int
    went: int
    p_more: float
    p_either: float
    clusters: int
    clustered_p_more: float
    clustered_p_either: float
    smallest_p: float

    @property
    def worse(self) -> bool:
        """Whether the second model copies more, at the one-sided 5 % level."""
        return self.clustered_p_more <= LEVEL


def paired_test(
    first_P: npt.NDArray[np.bool_], second_P: npt.NDArray[np.bool_], cluster_P: npt.NDArray[np.int64]
) -> PairedTest:
    """Test whether the second of two models copies more captions than the first.

    McNemar's test (1947) conditions on the captions whose outcomes differ. Near-identical captions change together, so
    it is repeated with clusters as units: under the hypothesis that the two models are exchangeable within a cluster,
    the sign of each cluster's difference is a fair coin, and the sum of the differences has an exactly known
    distribution (Fisher's randomization test). If every cluster has one caption, this is McNemar's test.

    Args:
        first_P: Whether the first model copies each caption.
        second_P: Whether the second model does.
        cluster_P: The cluster of each caption.

    Returns:
        The counts and the p-values. A p-value is 1 if nothing differs.
    """
    appeared, went = int((second_P & ~first_P).sum()), int((first_P & ~second_P).sum())
    _, inverse_P = np.unique(cluster_P, return_inverse=True)
    change_P = second_P.astype(np.int64) - first_P.astype(np.int64)
    difference_C = np.zeros(int(inverse_P.max(initial=-1)) + 1, np.int64)
    np.add.at(difference_C, inverse_P, change_P)
    clusters = int(np.count_nonzero(difference_C))
    n = appeared + went
    more, either = sign_flip_p(difference_C)
    return PairedTest(
        appeared=appeared,
        went=went,
        p_more=float(binomtest(appeared, n, alternative="greater").pvalue) if n else 1.0,
        p_either=float(binomtest(appeared, n).pvalue) if n else 1.0,
        clusters=clusters,
        clustered_p_more=more,
        clustered_p_either=either,
        smallest_p=0.5**clusters,
    )


def sign_flip_p(difference_C: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Compute the exact p-values of a sum of integers whose signs are fair coins under the hypothesis.

    Args:
        difference_C: The difference of each cluster.

    Returns:
        The probability that the sum is at least as large, and that its magnitude is at least as large.
    """
    sizes, counts = np.unique(np.abs(difference_C[difference_C != 0]), return_counts=True)
    # The sum over clusters with a positive sign. The difference is twice that, less the total.
    probability = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        probability = np.convolve(probability, of_size)
    total = len(probability) - 1
    difference = 2 * np.arange(total + 1) - total
    found = int(difference_C.sum())
    more = float(probability[difference >= found].sum())
    either = float(probability[np.abs(difference) >= abs(found)].sum())
    return min(more, 1.0), min(either, 1.0)
