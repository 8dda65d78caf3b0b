"""Measure how well a score separates captions whose truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    negative_N = np.sort(np.asarray(negative, dtype=np.float64))
    allowed = int(np.floor(fpr * len(negative_N) + 1e-9))
    threshold = negative_N[-allowed - 1] if allowed < len(negative_N) else -np.inf
    return float((np.asarray(positive, dtype=np.float64) > threshold).mean())
