"""Measure how often the confirm step confirms a caption that the model was never trained on.

A caption is confirmed if any of several rules holds, so an error rate per rule is not enough, and the rate that a
threshold was chosen for is not a measurement. The generated control captions are therefore split: one half sets the
thresholds, and the other half measures the complete rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc

from audit.statistics.intervals import upper_bound
from audit.verdicts.copies import copying_captions
from audit.verdicts.thresholds import Threshold


@dataclass(frozen=True)
class ConfirmError:
    """The measured false-positive rate of the confirm step.

    Attributes:
        controls: Number of control captions of the measuring half that were looked up.
        confirmed: How many of them the complete rule confirms.
        reproducing: How many of the confirmed ones have evidence beyond similarity that they really reproduce an image.
            They count as confirmed all the same: leaving out captions because they were confirmed would lower the rate.
        high: The one-sided upper 95 % bound (Clopper-Pearson) of the rate. None without control captions.
        captions: Number of audited captions that were looked up.
        pairs: Number of held-out pairs whose captions were looked up.
        pairs_confirmed: How many of them the complete rule confirms.
        pairs_high: The upper bound of their rate, as `high`. None without pairs.
    """

    controls: int
    confirmed: int
    reproducing: int
    high: float | None
    captions: int
    pairs: int = 0
    pairs_confirmed: int = 0
    pairs_high: float | None = None


def setting_half(controls: pa.Table, seed: int) -> set[str]:
    """Choose at random the control captions that set the thresholds; the others measure.

    Near-identical captions stay together. Caption groups are taken in the order of a hash of the seed and the group,
    and each joins the half that has fewer captions so far.

    Args:
        controls: (caption_id, caption_group), one row per generated control caption.
        seed: The seed of the split.

    Returns:
        The caption_ids of the half that sets the thresholds. It is the larger one if the halves differ.
    """
    members: dict[str, list[str]] = {}
    for row in controls.select(["caption_id", "caption_group"]).to_pylist():
        members.setdefault(row["caption_group"], []).append(row["caption_id"])
    setting: list[str] = []
    measuring: list[str] = []
    for group in sorted(members, key=lambda group: blake2b(f"{seed} {group}".encode(), digest_size=16).digest()):
        half = setting if len(setting) <= len(measuring) else measuring
        half += members[group]
    return set(setting if len(setting) >= len(measuring) else measuring)


def measured(
    matches: pa.Table,
    embedder: str,
    thresholds: Mapping[str, Threshold],
    seeds: int,
    reproducing: frozenset[str] = frozenset(),
) -> ConfirmError:
    """Count how many control captions the complete rule confirms.

    A control caption that is not confirmed counts only if all of its generations were looked up, so that failed
    generations do not lower the rate.

    Args:
        matches: Matches of audited captions, of the control captions that set no threshold, and of held-out pairs.
        embedder: The embedder that decides.
        thresholds: Its thresholds, by kind.
        seeds: Number of generations per caption.
        reproducing: Control captions with evidence beyond similarity that they really reproduce an image.
    """
    mine = matches.filter(pc.field("embedder") == embedder)
    confirmed, pairs_confirmed = (copying_captions(mine, name, embedder, thresholds) for name in ("control", "pair"))
    controls, pairs = looked_up(mine, "control", seeds) | confirmed, looked_up(mine, "pair", seeds) | pairs_confirmed
    return ConfirmError(
        controls=len(controls),
        confirmed=len(confirmed),
        reproducing=len(confirmed & reproducing),
        high=upper_bound(len(confirmed), len(controls)) if controls else None,
        captions=len(looked_up(mine, "discover", 1)),
        pairs=len(pairs),
        pairs_confirmed=len(pairs_confirmed),
        pairs_high=upper_bound(len(pairs_confirmed), len(pairs)) if pairs else None,
    )


def looked_up(matches: pa.Table, purpose: str, seeds: int) -> set[str]:
    """Return the captions of which at least this many generations were looked up."""
    runs = matches.filter(pc.field("purpose") == purpose).group_by(["caption_id", "seed"]).aggregate([])
    counts = runs.group_by("caption_id").aggregate([("seed", "count")])
    return set(counts.filter(pc.field("seed_count") >= seeds)["caption_id"].to_pylist())
