"""Examine control captions whose generations look like copies, and exclude those that really reproduce an image.

The model was not trained on a control caption, but the caption may be a variant of one that it was trained on. Its
generations are then copies like those that an audit looks for. If such a caption stays among the controls, it raises
the threshold and hides every real copy below it.

Shapes: M control captions, R matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtr, ndtri

from audit.duplicates.captions import overlap
from audit.verdicts.regions import WHOLE

Floats = npt.NDArray[np.float64]
# Exclude a control caption only if, under the tail of the others, any control caption reaches its similarity with a
# probability below this.
LEVEL = 0.05
LEAST_FOR_TAIL = 10
# A caption that shares at least this fraction of its shingles with another is a variant of it: a word or two differ.
VARIANT = 0.5


@dataclass(frozen=True)
class Control:
    """A control caption with at least one generation that looks like a copy.

    Attributes:
        caption_id: Id of the caption.
        caption: Text of the caption.
        similarity: Highest similarity over all seeds.
        image_id: Training image with which that similarity is reached.
        seeds_alike: Number of seeds whose generation looks like a copy.
        seeds: Number of seeds generated.
        next_similarity: Similarity of the same generation to the next most similar training image.
        p: Probability that any control caption is as high, from the tail fitted to the others.
        reasons: Evidence that the caption really reproduces the image. Empty if only the similarity suggests it.
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
    """Normal distribution fitted to the Fisher z, artanh(similarity), of `controls` control captions."""

    mean: float
    deviation: float
    controls: int

    @classmethod
    def fit(cls, maxima_M: Floats) -> Tail | None:
        """Fit the tail to maxima [M]; return None for fewer than LEAST_FOR_TAIL values or if all are equal."""
        z_M = _fisher(maxima_M[~np.isnan(maxima_M)])
        if len(z_M) < LEAST_FOR_TAIL or z_M.std() < 1e-9:
            return None
        return cls(float(z_M.mean()), float(z_M.std()), len(z_M))

    def survival(self, similarity: float) -> float:
        """Compute the probability that a control caption reaches a given similarity."""
        return float(ndtr(-(_fisher(np.array([similarity]))[0] - self.mean) / self.deviation))

    def quantile(self, rate: float) -> float:
        """Compute the similarity that a fraction `rate` of control captions reaches."""
        return float(np.tanh(self.mean - self.deviation * ndtri(rate)))


def alike(matches: pa.Table, embedder: str, column: str, floor: float) -> dict[str, list[dict[str, Any]]]:
    """Find the control captions that have a match that looks like a copy.

    Args:
        matches: Rows of `schema.MATCHES`.
        embedder: Only matches by this embedder are considered.
        column: similarity | region_similarity.
        floor: A match looks like a copy if its plain similarity is at least this.

    Returns:
        caption_id -> all matches of the caption's generations by the embedder, highest first.
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
    """Compute plain similarities [R]: add the background back to `similarity`; region similarities have none.

    Null becomes NaN.
    """
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
    """Collect evidence, beyond similarity, that a control caption really reproduces an image.

    Args:
        matches_of: Matches by caption_id, as returned by `alike`.
        column: similarity | region_similarity.
        floor: The same floor that was passed to `alike`.
        caption_of: Text of each control caption, by caption_id.
        trained: (image_id, caption), the captions that the dataset has for these images.
        reproduced: Images that a generation of one of their own captions copies, judged by similarity alone.

    Returns:
        The control captions, highest similarity first.
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
    """Separate control captions that really reproduce an image from those that are high by chance.

    The tail is fitted to the control captions that have no reason against them. A caption with a reason is excluded
    if, under that tail, the highest of all control captions would reach its similarity with a probability below
    LEVEL. A reason alone does not exclude a caption, because the controls would then lose their highest members.
    High similarity without a reason does not exclude one either.

    Args:
        maxima: (caption_id, similarity) of all control captions, as returned by `thresholds.control_maxima`.
        examined: Control captions as returned by `examine`.

    Returns:
        (excluded captions, captions that are as unlikely but are kept because nothing else speaks against them, tail).
        The lists are empty and the tail is None if no tail could be fitted.
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
        reasons.append("the model also copies that image from one of its own captions")
    if column == "similarity" and best["pixel_agreement"] is not None and best["pixel_agreement"] >= WHOLE:
        reasons.append(f"the two agree pixel by pixel in {100 * best['pixel_agreement']:.0f} % of the picture")
    following = control.next_similarity
    # The extraction rule: the squared distance to this image is at most half of that to the next one.
    if column == "similarity" and following is not None and 1 - control.similarity <= (1 - following) / 2:
        reasons.append(f"its picture is far less similar to the next training image ({following:.3f})")
    return reasons


def _plain(row: Mapping[str, Any], column: str) -> float:
    return float(row[column]) + (float(row["background"] or 0) if column == "similarity" else 0.0)


def _fisher(similarity_M: Floats) -> Floats:
    limit = 1 - 1e-6
    return np.arctanh(np.clip(similarity_M, -limit, limit))
