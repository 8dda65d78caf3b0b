"""Control captions under examination: does one that looks like a copy really reproduce a training image?

A control caption was never trained on, but it may be a variant of one that was, and then its generations are copies
like those that an audit looks for. Left among the controls, one of them hides all real copies below it.

Shapes: M control captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from audit.duplicates.captions import overlap
from audit.verdicts.regions import WHOLE

Floats = npt.NDArray[np.float64]
# A control caption is beyond the others' tail if one of them would be as high with this probability.
LEVEL = 0.05
LEAST_FOR_TAIL = 10
# A caption that shares so many of its shingles with another is a variant of it: a word or two differ.
VARIANT = 0.5


@dataclass(frozen=True)
class Control:
    """A control caption one of whose generations looks like a copy.

    Attributes:
        similarity: the highest one over its seeds; `image_id`: of the training image that it reaches it with.
        seeds_alike: how many of its `seeds` look like a copy.
        next_similarity: of the same generation to another training image.
        p: the probability that any of the controls is as high, by the tail fitted to the others.
        reasons: why it is held to really reproduce the image; empty: nothing but the similarity says so.
    """

    caption_id: str
    caption: str
    similarity: float
    image_id: str
    seeds_alike: int
    seeds: int
    next_similarity: float | None = None
    p: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tail:
    """A normal distribution of the Fisher z, artanh(similarity), of `controls` control captions."""

    mean: float
    deviation: float
    controls: int

    @classmethod
    def fit(cls, maxima_M: Floats) -> Tail | None:
        """Fit the tail; None for fewer than LEAST_FOR_TAIL similarities, or if all are the same."""
        z_M = _fisher(maxima_M[~np.isnan(maxima_M)])
        if len(z_M) < LEAST_FOR_TAIL or z_M.std() < 1e-9:
            return None
        mean, deviation = stats.norm.fit(z_M)
        return cls(float(mean), float(deviation), len(z_M))

    def survival(self, similarity: float) -> float:
        """Compute the probability that a control caption reaches a similarity."""
        return float(stats.norm.sf(_fisher(np.array([similarity]))[0], self.mean, self.deviation))

    def quantile(self, rate: float) -> float:
        """Compute the similarity that a share `rate` of control captions reaches."""
        return float(np.tanh(stats.norm.isf(rate, self.mean, self.deviation)))


def alike(matches: pa.Table, embedder: str, column: str, floor: float) -> dict[str, list[dict[str, Any]]]:
    """Find the control captions with a match that looks like a copy (plain similarity of `floor` and more).

    Returns:
        By caption_id all matches of the caption's generations, by the embedder, the highest first.
    """
    mine = matches.filter((pc.field("purpose") == "control") & (pc.field("embedder") == embedder))
    mine = mine.filter(pc.is_valid(mine[column]))
    high = mine.filter(pa.array(plain(mine, column) >= floor))
    mine = mine.filter(pc.is_in(mine["caption_id"], value_set=high["caption_id"].combine_chunks()))
    order = [(column, "descending"), ("image_id", "ascending"), ("seed", "ascending")]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in mine.drop_columns("region").sort_by(order).to_pylist():
        found.setdefault(row["caption_id"], []).append(row)
    return found


def plain(matches: pa.Table, column: str) -> Floats:
    """Compute similarities [R] with the background put back; those of regions are plain, null becomes NaN."""
    values_R = matches[column].to_numpy().astype(np.float64)
    return values_R + (pc.fill_null(matches["background"], 0.0).to_numpy() if column == "similarity" else 0.0)


def examine(
    matches_of: Mapping[str, Sequence[dict[str, Any]]],
    column: str,
    floor: float,
    caption_of: Mapping[str, str],
    trained: pa.Table,
    reproduced: frozenset[str],
) -> list[Control]:
    """Collect what says that a control caption really reproduces an image, beside its similarity.

    Args:
        matches_of: as `alike` gives them.
        column: similarity | region_similarity.
        floor: as of `alike`.
        caption_of: the text of each control caption.
        trained: (image_id, caption), the captions that the data set has for these images.
        reproduced: the images that a generation of a caption of their own is a copy of, as far as similarity says.

    Returns:
        The control captions, the highest first.
    """
    texts_of: dict[str, list[str]] = {}
    for row in trained.to_pylist():
        texts_of.setdefault(row["image_id"], []).append(row["caption"])
    found = []
    for id_, matches in matches_of.items():
        best = matches[0]
        seeds = {row["seed"] for row in matches}
        similar = {row["seed"] for row in matches if _plain(row, column) >= floor}
        others = [row["similarity"] for row in matches if row["seed"] == best["seed"] and row is not best]
        control = Control(
            caption_id=id_,
            caption=caption_of[id_],
            similarity=best[column],
            image_id=best["image_id"],
            seeds_alike=len(similar),
            seeds=len(seeds),
            next_similarity=max(others, default=None),
        )
        reasons = _reasons(control, best, column, texts_of.get(best["image_id"], []), reproduced)
        found.append(replace(control, reasons=tuple(reasons)))
    return sorted(found, key=lambda control: (-control.similarity, control.caption_id))


def separate(maxima: pa.Table, examined: Sequence[Control]) -> tuple[list[Control], list[Control], Tail | None]:
    """Tell control captions that really reproduce an image from those that are high by chance.

    The tail is fitted to all control captions but those with a reason. One with a reason is excluded if even the
    highest of as many control captions would be as high with a probability below LEVEL by that tail. A reason alone
    excludes none, or the controls would lose their highest members, and so does no similarity without a reason.

    Args:
        maxima: (caption_id, similarity) of all control captions, as `thresholds.control_maxima` gives them.
        examined: as `examine` gives them.

    Returns:
        (those excluded, those that are as unlikely but have no reason and are kept, the tail).
    """
    suspect = {control.caption_id for control in examined if control.reasons}
    others = pc.invert(pc.is_in(maxima["caption_id"], value_set=pa.array(sorted(suspect), pa.string())))
    tail = Tail.fit(maxima.filter(others)["similarity"].to_numpy().astype(np.float64))
    if tail is None:
        return [], [], None
    scored = [replace(each, p=min(1.0, len(maxima) * tail.survival(each.similarity))) for each in examined]
    beyond = [control for control in scored if control.p is not None and control.p < LEVEL]
    return [each for each in beyond if each.reasons], [each for each in beyond if not each.reasons], tail


def _reasons(
    control: Control, best: Mapping[str, Any], column: str, texts: Sequence[str], reproduced: frozenset[str]
) -> list[str]:
    reasons = []
    shares = overlap(control.caption, texts)
    if texts and max(shares) >= VARIANT:
        nearest = texts[int(np.argmax(shares))]
        reasons.append(f"a variant of a caption of that image: {nearest!r}")
    if control.image_id in reproduced:
        reasons.append("the model copies that image from a caption of its own too")
    if column == "similarity" and best["pixel_agreement"] is not None and best["pixel_agreement"] >= WHOLE:
        reasons.append(f"the two agree pixel by pixel in {100 * best['pixel_agreement']:.0f} % of the picture")
    following = control.next_similarity
    # The rule of an extraction: at most half as far (squared) from the image as from the next one.
    if column == "similarity" and following is not None and 1 - control.similarity <= (1 - following) / 2:
        reasons.append(f"no other training image is nearly as like its picture ({following:.3f})")
    return reasons


def _plain(row: Mapping[str, Any], column: str) -> float:
    return float(row[column]) + (float(row["background"] or 0) if column == "similarity" else 0.0)


def _fisher(similarity_M: Floats) -> Floats:
    limit = 1 - 1e-6
    return np.arctanh(np.clip(similarity_M, -limit, limit))
