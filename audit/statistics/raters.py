"""Judge the judges: agreement of raters, their error rates on decoys, and their joint decision per caption.

The tables are those of `crossaudit review`: `pairs` has the schema REVIEW_PAIRS, `reviews` the schema REVIEWS.
See docs/how-to/review.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtri

from audit.schema import COPIED_ANSWERS, HUMAN_VERDICTS, NEGATIVE_DECOYS, POSITIVE_DECOYS
from audit.statistics.intervals import clopper_pearson, upper_bound

# Fewer raters decide nothing.
LEAST_RATERS = 2
# `copied` and `not_copied` count the raters of the panel who see a copy (whole or in part), or none; `raters` counts
# all of the panel, and is 0 if there are too few.
DECISIONS = pa.schema([("pair", pa.string()), ("pair_type", pa.string()), *HUMAN_VERDICTS])


@dataclass(frozen=True)
class Rate:
    """`k` of `n`, with an exact two-sided interval; the ends are None without a trial."""

    k: int
    n: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, k: int, n: int, confidence: float = 0.95) -> Rate:
        """Compute the interval of `k` of `n` (Clopper and Pearson, 1934)."""
        return cls(k, n, *clopper_pearson(k, n, confidence)) if n else cls(k, n, None, None)


@dataclass(frozen=True)
class Rater:
    """What one rater answered.

    Attributes:
        name: The rater.
        judged: Number of pairs judged, decoys included.
        cases: Number of cases among them.
        false_positive: Decoys that are not copies but were called a copy, whole or in part.
        false_negative: Decoys that are copies but were not called one; "unsure" counts.
        finished: Whether the rater has judged every pair.
    """

    name: str
    judged: int
    cases: int
    false_positive: Rate
    false_negative: Rate
    finished: bool


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with a two-sided interval; None where chance alone would agree on everything."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree.

    Attributes:
        raters: The two raters.
        pairs: Number of pairs that both judged.
        agreed: Number of these on which they agree: copied (whole or in part), not copied, or unsure.
        kappa: Cohen's kappa over these pairs.
        cases: Number of cases that both judged.
        cases_agreed: Number of these on which they agree.
    """

    raters: tuple[str, str]
    pairs: int
    agreed: int
    kappa: Kappa
    cases: int
    cases_agreed: int


@dataclass(frozen=True)
class Upheld:
    """The captions whose verdict the raters uphold, and the errors of that decision on decoys.

    Attributes:
        caption_ids: The upheld captions.
        false_positive: (k, n): k of n decoys that are not copies would be upheld.
        false_negative: (k, n): k of n decoys that are copies would not be upheld.
    """

    caption_ids: frozenset[str]
    false_positive: tuple[int, int]
    false_negative: tuple[int, int]

    def false_positive_bound(self, confidence: float = 0.95) -> float:
        """Compute the one-sided upper bound of the false-positive rate of the decision; 1 without decoys."""
        k, n = self.false_positive
        return upper_bound(k, n, confidence) if n else 1.0


def cohen_kappa(first: Sequence[str], second: Sequence[str], confidence: float = 0.95) -> Kappa:
    """Compute Cohen's kappa (1960) of two raters who judged the same items.

    The interval is the wider one, at each end, of two: the asymptotic interval (Fleiss, Cohen and Everitt, 1969), and
    the one that follows from the exact interval of the rate of disagreement for the observed disagreement by chance.
    Without the second, raters who never disagree on a few items would have an interval of no width.

    Args:
        first: Answers of one rater [N].
        second: Answers of the other rater to the same items [N].
        confidence: Confidence level of the interval.
    """
    words = sorted({*first, *second})
    count_CC = np.zeros((len(words), len(words)))
    for one, other in zip(first, second, strict=True):
        count_CC[words.index(one), words.index(other)] += 1
    n = len(first)
    if len(words) < 2:
        return Kappa(None, None, None)
    p_CC = count_CC / n
    row_C, column_C = p_CC.sum(axis=1), p_CC.sum(axis=0)
    agreed, chance = float(np.trace(p_CC)), float(row_C @ column_C)
    kappa = (agreed - chance) / (1 - chance)
    spread = float(ndtri((1 + confidence) / 2)) * _standard_error(p_CC, kappa, n)
    fewest, most = clopper_pearson(round(n - np.trace(count_CC)), n, confidence)
    low = min(kappa - spread, 1 - most / (1 - chance))
    high = max(kappa + spread, 1 - fewest / (1 - chance))
    return Kappa(kappa, max(low, -1.0), min(high, 1.0))


def _standard_error(p_CC: np.ndarray, kappa: float, n: int) -> float:
    """Compute the asymptotic standard error of kappa (Fleiss, Cohen and Everitt, 1969, equation 13)."""
    row_C, column_C = p_CC.sum(axis=1), p_CC.sum(axis=0)
    chance = float(row_C @ column_C)
    weight_CC = (1 - kappa) ** 2 * (column_C[:, None] + row_C[None, :]) ** 2
    np.fill_diagonal(weight_CC, (1 - (row_C + column_C) * (1 - kappa)) ** 2)
    variance = float((p_CC * weight_CC).sum()) - (kappa - chance * (1 - kappa)) ** 2
    return float(np.sqrt(max(variance, 0.0) / n)) / (1 - chance)


def raters(pairs: pa.Table, reviews: pa.Table) -> list[Rater]:
    """Summarize each rater's answers, sorted by name."""
    type_of = dict(zip(pairs["pair"].to_pylist(), pairs["pair_type"].to_pylist(), strict=True))
    found = []
    for name, answers in sorted(_answers(reviews).items()):
        said = [(type_of[pair], word in COPIED_ANSWERS) for pair, word in answers.items() if pair in type_of]
        negative = [copied for kind, copied in said if kind in NEGATIVE_DECOYS]
        positive = [copied for kind, copied in said if kind in POSITIVE_DECOYS]
        found.append(
            Rater(
                name,
                judged=len(said),
                cases=sum(kind == "case" for kind, _ in said),
                false_positive=Rate.of(sum(negative), len(negative)),
                false_negative=Rate.of(len(positive) - sum(positive), len(positive)),
                finished=len(said) == len(pairs),
            )
        )
    return found


def agreements(reviews: pa.Table) -> list[Agreement]:
    """Compare every two raters on the pairs that both judged. Raters without a common pair are left out."""
    answers = _answers(reviews)
    cases = {
        pair
        for pair, kind in zip(reviews["pair"].to_pylist(), reviews["pair_type"].to_pylist(), strict=True)
        if kind == "case"
    }
    found = []
    for one, other in combinations(sorted(answers), 2):
        both = sorted(answers[one].keys() & answers[other].keys())
        if not both:
            continue
        first, second = ([_told(answers[name][pair]) for pair in both] for name in (one, other))
        same = [pair for pair, a, b in zip(both, first, second, strict=True) if a == b]
        common = [pair for pair in both if pair in cases]
        kappa = cohen_kappa(first, second)
        found.append(Agreement((one, other), len(both), len(same), kappa, len(common), len(cases & {*same})))
    return found


def decisions(pairs: pa.Table, reviews: pa.Table) -> pa.Table:
    """Decide every pair by the majority of the panel: the raters who have judged all pairs.

    `upheld` if more than half of the panel sees a copy, whole or in part; `overturned` if more than half sees none;
    else `undecided`. A panel of fewer than LEAST_RATERS decides nothing.

    Returns:
        A table of schema DECISIONS, one row per pair, in the order of `pairs`.
    """
    answers = _answers(reviews)
    panel = [rater.name for rater in raters(pairs, reviews) if rater.finished]
    panel = panel if len(panel) >= LEAST_RATERS else []
    rows = []
    for row in pairs.select(["pair", "pair_type", "caption_id"]).to_pylist():
        said = [_told(answers[name][row["pair"]]) for name in panel]
        copied, not_copied = said.count("copied"), said.count("not copied")
        outcome = "undecided"
        if 2 * max(copied, not_copied) > len(panel):
            outcome = "upheld" if copied > not_copied else "overturned"
        rows.append(row | {"outcome": outcome, "copied": copied, "not_copied": not_copied, "raters": len(panel)})
    return pa.Table.from_pylist(rows, schema=DECISIONS)


def human_verdicts(pairs: pa.Table, reviews: pa.Table) -> pa.Table:
    """Return what the panel decides on each case (schema HUMAN_VERDICTS)."""
    return decisions(pairs, reviews).filter(pc.field("pair_type") == "case").select(HUMAN_VERDICTS.names)


def upheld(pairs: pa.Table, reviews: pa.Table) -> Upheld:
    """Return the captions that the panel upholds, with the errors of its joint decision on the decoys.

    The decoys are decided by the same rule and the same raters as the cases, so their error is that of the decision.
    Without a panel nothing is upheld, and there are no decoys.
    """
    decided = [row for row in decisions(pairs, reviews).to_pylist() if row["raters"]]
    held: dict[str, list[bool]] = defaultdict(list)
    for row in decided:
        held[row["pair_type"]].append(row["outcome"] == "upheld")
    negative = [found for kind in NEGATIVE_DECOYS for found in held[kind]]
    positive = [found for kind in POSITIVE_DECOYS for found in held[kind]]
    return Upheld(
        frozenset(row["caption_id"] for row in decided if row["pair_type"] == "case" and row["outcome"] == "upheld"),
        (sum(negative), len(negative)),
        (len(positive) - sum(positive), len(positive)),
    )


def _answers(reviews: pa.Table) -> dict[str, dict[str, str]]:
    """Return the answers by rater and pair."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in reviews.select(["rater", "pair", "answer"]).to_pylist():
        found[row["rater"]][row["pair"]] = row["answer"]
    return found


def _told(answer: str) -> str:
    """Return what an answer says about copying: copied, not copied or unsure."""
    return "copied" if answer in COPIED_ANSWERS else {"no copy": "not copied"}.get(answer, "unsure")
