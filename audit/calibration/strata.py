"""Measure the false-positive rate of p-values among held-out control captions, by stratum.

Over all control captions the rate is right by construction. If it is far from it in a stratum, p-values of captions of
that stratum mislead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from audit.calibration.calibration import Calibration, in_fitting_half
from audit.calibration.likeness import script_of
from audit.schema import CONTROL_SCORES
from audit.statistics.intervals import clopper_pearson, count_at_least

# Shapes: N captions.

RATES = (0.01, 0.05)
# Lengths in characters: the first length of each stratum.
LENGTHS = (0, 26, 51, 101)


@dataclass(frozen=True)
class Stratum:
    """The control captions of one stratum.

    Attributes:
        kind: length | truncation | script.
        name: What the captions have in common.
        controls: Number of control captions in it that set p-values.
        above: For each of RATES, the number of them whose p-value is at most the rate.
        low: Lower end of the 95 % interval of each share (Clopper-Pearson).
        high: Upper end.
        share_controls: Fraction of the control captions that are in it.
        share_captions: Fraction of the captions of the dataset that are in it.
    """

    kind: str
    name: str
    controls: int
    above: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    share_controls: float
    share_captions: float


def false_positives(
    scores: pa.Table, control_table: pa.Table, truncated: Mapping[str, bool], captions: pa.Table
) -> list[Stratum]:
    """Measure how often a held-out control caption has a small p-value, by stratum.

    Args:
        scores: Rows of `schema.CONTROL_SCORES`.
        control_table: The control captions, with `caption_id` and `caption`.
        truncated: caption_id -> whether the tokenizer truncates it.
        captions: A random sample of the captions of the dataset (`caption`, `truncated`), for their shares.

    Returns:
        The strata that have control captions or captions, by kind.
    """
    text_of = dict(zip(control_table["caption_id"].to_pylist(), control_table["caption"].to_pylist(), strict=True))
    mine = [strata_of(text_of[id_], truncated.get(id_)) for id_ in scores["caption_id"].to_pylist()]
    p_N = scores["p_unseen"].to_numpy()
    theirs = [
        strata_of(text, cut)
        for text, cut in zip(captions["caption"].to_pylist(), captions["truncated"].to_pylist(), strict=True)
    ]
    sizes, of_data = (Counter(stratum for strata in of for stratum in strata) for of in (mine, theirs))
    found = []
    for stratum in sorted(sizes.keys() | of_data.keys()):
        inside_N = np.array([stratum in strata for strata in mine], bool)
        above = tuple(int((p_N[inside_N] <= rate).sum()) for rate in RATES)
        ends = [clopper_pearson(k, sizes[stratum]) if sizes[stratum] else (0.0, 1.0) for k in above]
        low, high = (tuple(end[side] for end in ends) for side in (0, 1))
        shares = sizes[stratum] / max(1, len(mine)), of_data[stratum] / max(1, len(theirs))
        kind, _, name = stratum
        found.append(Stratum(kind, name, sizes[stratum], above, low, high, *shares))
    return found


def control_scores(calibration: Calibration, control_table: pa.Table) -> pa.Table:
    """Score the control captions that give p-values; the p-value of each is against the others (leave-one-out).

    Args:
        calibration: The calibration.
        control_table: The rows that it was fitted on, with `caption_id`, `caption` and `caption_group`.

    Returns:
        Rows of `schema.CONTROL_SCORES`, ordered by caption_id.
    """
    held_out_N = [not in_fitting_half(group) for group in control_table["caption_group"].to_pylist()]
    held_out = control_table.filter(pa.array(held_out_N, pa.bool_())).drop_columns("caption")
    ids, distances = calibration.distances(held_out)
    # (1 + others at least as far) / (1 + others): a caption counts itself once.
    p_PN = [count_at_least(distance_N, distance_N) / max(1, len(ids)) for distance_N in distances]
    p_N = np.minimum(1.0, len(p_PN) * np.min(p_PN, axis=0))
    columns = [pa.array(ids, pa.string()), calibration.score(held_out)["score"], pa.array(p_N)]
    return pa.table(columns, schema=CONTROL_SCORES).sort_by("caption_id")


def strata_of(caption: str, truncated: bool | None) -> list[tuple[str, int, str]]:
    """Return the strata of a caption as (kind, order, name)."""
    at = sum(len(caption) >= first for first in LENGTHS) - 1
    found = [("length", at, length_stratum(len(caption)))]
    if truncated is not None:
        found.append(("truncation", int(truncated), "truncated" if truncated else "not truncated"))
    return [*found, ("script", 0, main_script(caption))]


def length_stratum(characters: int) -> str:
    """Return the name of the stratum of captions of a length."""
    at = sum(characters >= first for first in LENGTHS) - 1
    if at + 1 == len(LENGTHS):
        return f"{LENGTHS[at]} characters or more"
    return f"{LENGTHS[at]} to {LENGTHS[at + 1] - 1} characters"


def main_script(caption: str) -> str:
    """Return the script of most letters, such as Latin; "none" if there are no letters."""
    scripts = Counter(script_of(letter) for letter in caption if letter.isalpha())
    return min(scripts, key=lambda script: (-scripts[script], script)).capitalize() if scripts else "none"
