"""Compare what single timesteps, groups of them and cascades find, from the responses that a screen recorded.

Shapes: N captions, M control captions, T timesteps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from audit.calibration.distance import robust_scale
from audit.statistics.detection_rates import auroc, tpr_at
from benchmarks.planted.bench.labels import Labels

Floats = npt.NDArray[np.float64]
TIMESTEPS = (981, 861, 741, 621, 501, 381, 261, 141)  # of `noise_profile`
GROUPS = {
    "all eight": tuple(range(8)),
    "741 to 381": (2, 3, 4, 5),
    "741 to 141": (2, 3, 4, 5, 6, 7),
    "621 and 501": (3, 4),
    "621 and 141": (3, 7),
    "621, 381 and 141": (3, 5, 7),
}
SHARES = (0.05, 0.1, 0.2)  # of the captions that a cascade scores a second time
BUDGET = 500


def compare(folder: Path, labels: Labels) -> list[dict[str, Any]]:
    """Return AUROC, TPR at 1 % FPR and pictures found for mean z-scores of timesteps, alone, together and in cascades.

    Args:
        folder: The folder of a measured model.
        labels: Its labels.
    """
    table = pq.read_table(folder / "screen.parquet", columns=["caption", "noise_response"])
    names, values_NT = table["caption"].to_pylist(), np.array(table["noise_response"].to_pylist())
    kind_N = np.array([labels.kind[name] for name in names])
    median_T, inverse_T = robust_scale(values_NT[kind_N == "control"])
    z_NT = (values_NT - median_T) * inverse_T
    hit_N = np.array([labels.pixels.get(name, 0) > 0 for name in names])
    positive_N, negative_N = (np.isin(names, group) for group in (labels.positives(), labels.negatives("never")))
    cluster_N = np.array([labels.cluster[name] for name in names])
    choices = {f"{t}": (i,) for i, t in enumerate(TIMESTEPS)} | GROUPS
    score = {name: z_NT[:, list(at)].mean(1) for name, at in choices.items()}
    forwards: dict[str, float] = {name: len(at) for name, at in choices.items()}
    competing_N = kind_N != "control"
    for first, second in (("621", "all eight"), ("621", "741 to 381"), ("621", "621 and 141"), ("501", "all eight")):
        for share in SHARES:
            name = f"{first}, then {second} for {share:.0%}"
            score[name] = cascade(score[first], score[second], share, competing_N)
            forwards[name] = forwards[first] + share * (forwards[second] - 1)
    return [
        {"choice": name, "forwards": forwards[name]}
        | {"auroc": auroc(score_N[positive_N], score_N[negative_N])}
        | {"tpr_at_1_percent": tpr_at(0.01, score_N[positive_N], score_N[negative_N])}
        | {"found": _found(score_N, competing_N, hit_N, cluster_N)}
        for name, score_N in score.items()
    ]


def cascade(first_N: Floats, second_N: Floats, share: float, competing_N: npt.NDArray[np.bool_]) -> Floats:
    """Rank the share of captions that score highest in the first stage by the second, above all others.

    Args:
        first_N: Scores of the first stage.
        second_N: Scores of the second stage.
        share: The share of the competing captions that reach the second stage.
        competing_N: Which captions compete. The others keep their place relative to the threshold.
    """
    limit = np.quantile(first_N[competing_N], 1 - share)
    reached_N = first_N >= limit
    ranked_N = np.where(reached_N, second_N - second_N[reached_N].min() + 1, 0.0)
    return np.where(reached_N, ranked_N, first_N - first_N.max())


def _found(
    score_N: Floats, competing_N: npt.NDArray[Any], hit_N: npt.NDArray[Any], cluster_N: npt.NDArray[Any]
) -> float:
    """Return the share of memorized pictures that a caption among the BUDGET highest reproduces."""
    at = np.flatnonzero(competing_N)
    best = at[np.argsort(-score_N[at], kind="stable")[:BUDGET]]
    return len(set(cluster_N[best[hit_N[best]]])) / len(set(cluster_N[competing_N & hit_N]))
