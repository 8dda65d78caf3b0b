"""How well a score tells captions apart whose truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def tpr_at(fpr: float, positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """The best true-positive rate of a threshold whose false-positive rate is at most `fpr` (docs/design.md, 3).

    A caption is flagged if its score is above the threshold; ties with a negative therefore never help.
    """
    negative_N = np.sort(np.asarray(negative, dtype=np.float64))
    allowed = int(np.floor(fpr * len(negative_N) + 1e-9))
    threshold = negative_N[-allowed - 1] if allowed < len(negative_N) else -np.inf
    return float((np.asarray(positive, dtype=np.float64) > threshold).mean())
