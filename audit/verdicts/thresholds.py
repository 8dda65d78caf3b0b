"""Choose the similarity at which an image counts as copied, from control captions and never below a floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audit.embedding.floors import PUBLISHED, PUBLISHED_SOURCE, Floor
from audit.verdicts.control_captions import Control, Tail

# Shapes: M control captions.
Floats = npt.NDArray[np.float64]
COLUMNS = {"verbatim": "similarity", "region": "region_similarity"}


@dataclass(frozen=True)
class Threshold:
    """The similarity at which an image counts as copied, and the evidence for it.

    Attributes:
        value: The similarity. None if nothing can be called a copy by this kind of similarity.
        source: controls | floor | configured | missing (no control caption has such a similarity).
        embedder: The embedder whose similarities it applies to.
        kind: verbatim (the whole image) | region.
        floor: The plain similarity below which nothing counts as a copy.
        floor_source: Where the floor comes from.
        rate: Fraction of control captions that may reach the threshold.
        controls: Number of control captions generated.
        used: Number of control captions that the threshold is based on, i.e. that were not excluded.
        without: Number of the used ones that have no such similarity.
        beyond: Number of the used ones that reach the threshold.
        excluded: Control captions that really reproduce a training image, with the reasons.
        tail: Distribution fitted to the other control captions.
        notes: Sentences that a reader needs to know.
    """

    value: float | None
    source: str
    embedder: str = ""
    kind: str = ""
    floor: float | None = None
    floor_source: str | None = None
    rate: float | None = None
    controls: int = 0
    used: int = 0
    without: int = 0
    beyond: int = 0
    excluded: tuple[Control, ...] = ()
    tail: Tail | None = None
    notes: tuple[str, ...] = ()


def threshold_of_json(content: Mapping[str, Any]) -> Threshold:
    """Build a threshold from the JSON of its `dataclasses.asdict`."""
    excluded = tuple(Control(**{**item, "reasons": tuple(item["reasons"])}) for item in content["excluded"])
    tail = content["tail"] and Tail(**content["tail"])
    return Threshold(**{**content, "excluded": excluded, "tail": tail, "notes": tuple(content["notes"])})


def threshold_from_controls(maxima_M: Floats, rate: float) -> float | None:
    """Compute the ceil((M + 1)(1 - rate))-th smallest maximum, which control captions exceed at most at this rate.

    Args:
        maxima_M: Highest similarity of each control caption over its seeds and all images. NaN if it has none; it still
            counts as a control caption.
        rate: Fraction of control captions that may exceed the threshold.

    Returns:
        The threshold. If M is too small for the rate, or the maximum of that rank is NaN, the highest maximum. None if
        all are NaN.
    """
    known = np.sort(maxima_M[~np.isnan(maxima_M)])
    if not len(known):
        return None
    rank = math.ceil((len(maxima_M) + 1) * (1 - rate) - 1e-9)  # 100 * 0.99 must not become 100
    at = rank - 1 - (len(maxima_M) - len(known))
    return float(known[at] if 0 <= at < len(known) else known[-1])


def control_maxima(matches: pa.Table, embedder: str, kind: str) -> pa.Table:
    """Find the highest similarity of each control caption over seeds and images.

    Args:
        matches: Rows of `schema.MATCHES`.
        embedder: Only matches by this embedder are considered.
        kind: verbatim | region.

    Returns:
        (caption_id, similarity). The similarity is null if the caption's generations have no comparable region.
    """
    column = COLUMNS[kind]
    mine = matches.filter((pc.field("purpose") == "control") & (pc.field("embedder") == embedder))
    best = mine.group_by("caption_id").aggregate([(column, "max")]).sort_by("caption_id")
    return best.select(["caption_id", f"{column}_max"]).rename_columns(["caption_id", "similarity"])


def choose_threshold(
    kind: str,
    maxima_M: Floats,
    rate: float,
    floor: Floor | float | None = PUBLISHED,
    normalised: bool = False,
) -> Threshold:
    """Choose the threshold of `kind` from control captions, but never below the floor.

    Args:
        kind: verbatim (the whole image) | region.
        maxima_M: As for `threshold_from_controls`, without the excluded control captions.
        rate: Fraction of control captions that may exceed the threshold.
        floor: Lowest plain similarity of a copy (default: the published one for SSCD). None if the embedder has none;
            no verdict may then be based on the threshold.
        normalised: Whether a background was subtracted from `maxima_M`. If so, the floor applies separately to plain
            similarities.

    Returns:
        The threshold. It has no value if no control caption has such a similarity, because it is then unknown what
        pictures reach by chance, unless the floor was configured. For whole images, the published floor stands in if
        there are no control captions.
    """
    if isinstance(floor, int | float):
        floor = Floor(float(floor), PUBLISHED_SOURCE)
    value = threshold_from_controls(maxima_M, rate)
    source = "missing" if value is None else "controls"
    configured = floor is not None and floor.source == "configured"
    if floor is not None and not normalised:
        alone = value is None and (configured or (kind == "verbatim" and not len(maxima_M)))
        if alone or (value is not None and value < floor.value):
            value, source = floor.value, "configured" if configured else "floor"
    return Threshold(
        value,
        source,
        kind=kind,
        floor=floor.value if floor else None,
        floor_source=floor.source if floor else None,
        rate=rate,
        controls=len(maxima_M),
        used=len(maxima_M),
        without=int(np.isnan(maxima_M).sum()),
        beyond=0 if value is None else int((maxima_M >= value).sum()),
    )
