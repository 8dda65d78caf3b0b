"""From which similarity on an image counts as copied: thresholds from control captions, never below a floor."""

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
    """A similarity from which on an image counts as copied, and all that it rests on.

    Attributes:
        value: the similarity; None: nothing is called a copy by this kind of similarity.
        source: controls | floor | configured | missing (no control caption has such a similarity).
        embedder, kind: whose similarity it is, and of what: verbatim (the whole image) | region.
        floor, floor_source: the plain similarity that it never falls below, and where that comes from.
        rate: the share of control captions that may lie beyond it.
        controls: how many control captions were tried.
        used: how many of them the threshold rests on: those not excluded.
        without: how many of the used ones have no such similarity.
        beyond: how many of the used ones lie at or beyond it.
        excluded: control captions that really reproduce a training image, with the reasons.
        tail: what the other control captions let expect, by a fitted distribution.
        notes: what a reader must know, as sentences.
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
    """Build a threshold from what `dataclasses.asdict` and JSON made of one."""
    excluded = tuple(Control(**{**item, "reasons": tuple(item["reasons"])}) for item in content["excluded"])
    tail = content["tail"] and Tail(**content["tail"])
    return Threshold(**{**content, "excluded": excluded, "tail": tail, "notes": tuple(content["notes"])})


def threshold_from_controls(maxima_M: Floats, rate: float) -> float | None:
    """Compute the ceil((M + 1)(1 - rate))-th smallest maximum: a control caption exceeds it at most at this rate.

    Args:
        maxima_M: the highest similarity of each control caption over its seeds and all images; NaN: it has none, and
            was tried all the same.
        rate: the share of control captions that may lie beyond.

    Returns:
        The threshold; the highest maximum where M is too small for the rate, or where the one of that rank is NaN.
        None if all are.
    """
    known = np.sort(maxima_M[~np.isnan(maxima_M)])
    if not len(known):
        return None
    rank = math.ceil((len(maxima_M) + 1) * (1 - rate) - 1e-9)  # 100 * 0.99 must not become 100
    at = rank - 1 - (len(maxima_M) - len(known))
    return float(known[at] if 0 <= at < len(known) else known[-1])


def control_maxima(matches: pa.Table, embedder: str, kind: str) -> pa.Table:
    """Find the highest similarity of each control caption over seeds and images: (caption_id, similarity).

    Null for a control caption whose generations have no comparable region.
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
    """Choose the threshold of `kind` (verbatim | region): that of the control captions, but never below the floor.

    Args:
        kind: verbatim (the whole image) | region.
        maxima_M: as of `threshold_from_controls`, without the control captions that are excluded.
        rate: the share of control captions that may lie beyond.
        floor: the least plain similarity of a copy (default: the published one of SSCD); None: the embedder has none,
            and no verdict may rest on the threshold.
        normalised: `maxima_M` are less a background: the floor then holds for plain similarities beside the threshold.

    Returns:
        A threshold without a value if no control caption has such a similarity, unless the floor was configured: what
        pictures reach by chance is then not known. The published floor stands in for control captions of whole images.
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
