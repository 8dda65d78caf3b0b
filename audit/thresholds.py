"""From which similarity on an image counts as copied: thresholds from null captions (design, 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.statistics import nulls_needed

# Where there is no null: 0.75 is 90 % precision on DISC for SSCD (arXiv 2202.10261), 0.5 the looser rule
# of the literature on diffusion models (Somepalli et al., arXiv 2212.03860).
PUBLISHED = {"verbatim": 0.75, "region": 0.5}


@dataclass(frozen=True)
class Threshold:
    """A similarity from which on an image counts as copied; `source`: null | configured | published."""

    value: float
    source: str
    null_n: int = 0


def threshold_from_null(maxima: np.ndarray, rate: float) -> float:
    """The ceil((m + 1)(1 - rate))-th smallest of m null maxima: a null caption exceeds it at most at this rate.

    `maxima`: [m], the highest similarity of each null caption over its seeds and all images.
    Raises AuditError if m < 1/rate - 1: no such value exists.
    """
    m = len(maxima)
    rank = math.ceil((m + 1) * (1 - rate) - 1e-9)  # 100 * 0.99 must not become 100
    if rank > m or m == 0:
        raise AuditError(
            f"{m} null captions cannot set a threshold at a null rate of {rate:g}",
            where="confirm.null_captions",
            do=f"Give at least {nulls_needed(rate)} null captions, or raise confirm.null_rate.",
        )
    return float(np.sort(maxima)[rank - 1])


def null_maxima(matches: pa.Table, embedder: str, column: str) -> np.ndarray:
    """Per null caption, the maximum of `column` (similarity or region_similarity) over seeds and ranks: [m].

    A null caption whose generations have no comparable region counts with -1: it too was tried.
    """
    mine = matches.filter((pc.field("purpose") == "null") & (pc.field("embedder") == embedder))
    best = mine.group_by("caption_id").aggregate([(column, "max")]).column(f"{column}_max")
    return pc.fill_null(best, -1.0).to_numpy()


def choose_threshold(
    kind: str, maxima: np.ndarray, rate: float, floor: float | None = None, normalised: bool = False
) -> Threshold:
    """The threshold of `kind` (verbatim | region): the null's, but never below a configured floor.

    Without any null captions (m = 0): the floor, or else the published constant. Both are of plain similarities:
    AuditError where one would be used with normalised ones, which run lower.
    """
    if normalised and (floor is not None or len(maxima) == 0):
        raise AuditError(
            f"the {'floor' if floor is not None else 'published threshold'} of `{kind}` is one of plain similarities, "
            "and these are normalised by a background: only null captions can set their threshold",
            where="confirm",
            do="Leave out the floor or the background, and see that null captions are generated.",
        )
    if len(maxima) == 0:
        return Threshold(floor, "configured") if floor is not None else Threshold(PUBLISHED[kind], "published")
    value = threshold_from_null(maxima, rate)
    if floor is not None and floor > value:
        return Threshold(floor, "configured", len(maxima))
    return Threshold(value, "null", len(maxima))
