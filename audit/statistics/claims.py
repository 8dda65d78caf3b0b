"""State what an audit has shown about all captions, in numbers and sentences (docs/explanation/claims.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, floor, log10
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.schema import CONFIRMED_WORDS
from audit.statistics.bounds import HIGH, LEVELS, LOW, UNDETERMINED, Bounds, Evidence, Tally, bounds, true_low
from audit.statistics.intervals import upper_bound
from audit.statistics.raters import human_verdicts, upheld

MILLION = 1_000_000
# The probability with which the claim of a review may fail: half for the rate of the raters' errors, half for their
# number.
REVIEW_LEVEL = 0.01
# The columns of VERDICTS that the claims are made from.
VERDICT_COLUMNS = ["caption_id", "verdict", "row_count", "family", "fresh_copies", "fresh_generations"]


@dataclass(frozen=True)
class Claim:
    """One end of a claim.

    Attributes:
        estimand: What is bounded: copies | flagged | rows | recall | recall_families | generations | false_positives |
            reviewed.
        end: at_least | at_most.
        value: The bound: a number of captions or rows, or a share from 0 to 1.
        of: The number of captions, rows or generations in the population.
        level: The probability with which this claim holds on its own.
        sentence: The claim in words.
        would_change: What would make the claim sharper, or different.
    """

    estimand: str
    end: str
    value: float
    of: int
    level: float
    sentence: str
    would_change: str


def claims(
    verdicts: pa.Table,
    scores: pa.Table,
    captions: int,
    rest_row_counts: Mapping[int, int],
    controls: tuple[int, int] | None = None,
    fresh_seeds: int = 0,
    seed_was_given: bool = False,
    until: float | None = None,
    sample_limit: int | None = None,
    population: str = "captions of the dataset",
) -> dict[str, Any]:
    """State what the audit has shown, for the manifest and the report.

    Args:
        verdicts: VERDICT_COLUMNS of at least the selected captions.
        scores: (caption_id, selected_by) of at least the selected captions.
        captions: Number of all captions audited.
        rest_row_counts: For each row count, the number of captions outside the budget that have it.
        controls: Number of control captions that set no threshold, and how many of them the protocol flags.
        fresh_seeds: Number of new seeds with which flagged captions were generated again. A generation that failed
            counts as no copy.
        seed_was_given: Whether the auditor chose the seed of the sample.
        until: As in `Evidence`.
        sample_limit: As in `Evidence`.
        population: What the captions are, in the plural.

    Returns:
        `joint_level`: the probability with which all claims hold together; `population`; `evidence`; `bounds`;
        `claims`, as in `Claim`; and `sentences`.
    """
    table = verdicts.select(VERDICT_COLUMNS).join(scores.select(["caption_id", "selected_by"]), "caption_id")
    budget = table.filter(pc.field("selected_by") == "budget")
    sample = table.filter(pc.field("selected_by") == "sample")
    m, f = controls or (None, 0)
    evidence = Evidence(captions, Tally.of(budget["verdict"]), Tally.of(sample["verdict"]), m, f, until, sample_limit)
    found = bounds(evidence)
    stated = [
        *_of_captions(evidence, found, population),
        *_of_rows(budget, evidence, found, rest_row_counts),
        *_of_recall(budget, found),
        *_of_generations(table, fresh_seeds),
        *_of_controls(evidence, found),
    ]
    joint = 1 - sum(LEVELS.values())
    return {
        "joint_level": joint,
        "population": f"{captions:,} {population}",
        "evidence": asdict(evidence),
        "bounds": asdict(found),
        "claims": [asdict(claim) for claim in stated],
        "sentences": [
            _basis(evidence, seed_was_given),
            *(claim.sentence for claim in stated),
            f"All of these statements hold together with {100 * joint:g} % confidence.",
        ],
    }


def reviewed(pairs: pa.Table, reviews: pa.Table) -> Claim | None:
    """State how many of the reviewed captions copy a training image, by the judgement of people.

    The raters' own error is measured on decoys that are no copies, and is subtracted as for control captions. The claim
    holds on its own: it is not part of the joint level, because a review is made after the audit.

    Args:
        pairs: Rows of `schema.REVIEW_PAIRS`.
        reviews: Rows of `schema.REVIEWS`.

    Returns:
        The claim. None if no panel has decided, or there was no decoy.
    """
    found, cases = upheld(pairs, reviews), human_verdicts(pairs, reviews)
    judged = len(cases.filter(pc.field("raters") > 0))
    false, decoys = found.false_positive
    if not judged or not decoys:
        return None
    alpha = REVIEW_LEVEL / 2
    rate = upper_bound(false, decoys, 1 - alpha)
    low = true_low(Tally(judged, len(found.caption_ids), 0), rate, alpha)
    text = (
        f"Reviewers upheld {len(found.caption_ids):,} of the {judged:,} flagged captions that they judged blind, and "
    )
    text += (
        f"{false:,} of {decoys:,} decoys that are no copies: at least {low:,} of these captions make the model copy a "
    )
    text += "training image"
    change = "More decoys (crossaudit review --decoys) leave less to the error of the reviewers."
    return Claim("reviewed", "at_least", low, judged, 1 - REVIEW_LEVEL, _at(text, REVIEW_LEVEL), change)


def _basis(evidence: Evidence, seed_was_given: bool) -> str:
    census, sample = evidence.census, evidence.sample
    text = f"We generated images for all {census.captions:,} captions of the budget; {census.flagged:,} were flagged."
    if sample.captions:
        text += f" We also generated images for {sample.captions:,} of the other {evidence.rest:,} captions, drawn at "
        text += "random with a seed that the auditor chose" if seed_was_given else "random"
        text += ", until a bound was reached; " if evidence.until is not None else "; "
        text += f"{sample.flagged:,} were flagged."
    elif evidence.rest:
        text += " No random sample was drawn, so nothing is claimed about the others."
    if undetermined := census.undetermined + sample.undetermined:
        text += f" {undetermined:,} captions have no verdict, because an image or a generation is missing: every "
        text += "'at most' counts them as copies, and no 'at least' does."
    return text


def _of_controls(evidence: Evidence, found: Bounds) -> Iterable[Claim]:
    rate, controls = found.false_positive_rate_high, evidence.controls
    if rate is None or controls is None:
        return
    alpha = LEVELS["false_positive_rate"]
    text = f"The protocol flags at most {percent(rate)} of captions that copy nothing: it flagged "
    text += f"{evidence.false_positives:,} of {controls:,} control captions that set no threshold"
    change = "More control captions (confirm.control_captions) bring it closer to the true rate."
    yield Claim("false_positives", "at_most", rate, controls, 1 - alpha, _at(text, alpha), change)


def _of_captions(evidence: Evidence, found: Bounds, population: str) -> Iterable[Claim]:
    total, all_ = evidence.captions, f"the {evidence.captions:,} {population}"
    if found.copies_low is not None:
        low = found.copies_low
        text = f"At least {low:,} of {all_} ({_part(low, total)}) make the model copy a training image, after "
        text += "subtracting as many as chance may explain"
        if not low:
            text = f"It is not shown that any of {all_} makes the model copy a training image: chance may explain "
            text += f"all {evidence.census.flagged + evidence.sample.flagged:,} that were flagged"
        change = "A larger budget may find more, and more control captions leave less to chance."
        yield Claim("copies", "at_least", low, total, 1 - LOW, _at(text, LOW), change)
    else:
        low = found.flagged_low
        text = f"At least {low:,} of {all_} ({_part(low, total)}) are flagged as copies; how many of them are "
        text += "flagged by chance was not measured"
        change = "Control captions (confirm.control_captions) show how many are flagged by chance."
        yield Claim("flagged", "at_least", low, total, 1 - LOW, _at(text, LOW), change)
    if evidence.bounds_rest:
        high = found.flagged_high
        text = f"At most {high:,} of {all_} ({percent(high / max(total, 1))}) make the model copy a training image "
        text += "under this protocol"
        change = "A larger audit sample (select.audit_sample), or fewer captions without a verdict, lowers it."
        yield Claim("copies", "at_most", high, total, 1 - HIGH, _at(text, HIGH), change)


def _of_rows(
    budget: pa.Table, evidence: Evidence, found: Bounds, rest_row_counts: Mapping[int, int]
) -> Iterable[Claim]:
    total = sum(rows * captions for rows, captions in rest_row_counts.items()) + _sum(budget["row_count"])
    flagged, undetermined = (
        budget.filter(pc.is_in(budget["verdict"], value_set=pa.array(words)))["row_count"].to_pylist()
        for words in (CONFIRMED_WORDS, UNDETERMINED)
    )
    of = f"of the {total:,} rows of the dataset carry a caption that makes the model copy a training image"
    if found.census_low is not None and found.missed_low is not None:
        # The captions that are flagged by chance may be those with the most rows.
        low = sum(sorted(flagged)[: found.census_low]) + found.missed_low
        change = "A larger budget may find more, and more control captions leave less to chance."
        if low:
            yield Claim("rows", "at_least", low, total, 1 - LOW, _at(f"At least {low:,} {of}", LOW), change)
    if evidence.bounds_rest:
        # The captions that the sample missed may be those with the most rows.
        high = sum(flagged) + sum(undetermined) + _most_rows(rest_row_counts, found.missed_high)
        change = "A larger audit sample (select.audit_sample) lowers it."
        yield Claim("rows", "at_most", high, total, 1 - HIGH, _at(f"At most {high:,} {of}", HIGH), change)


def _of_recall(budget: pa.Table, found: Bounds) -> Iterable[Claim]:
    low, most = found.recall_low, found.flagged_high
    if low is None or found.census_low is None:
        return
    both, change = HIGH + LOW, "A larger budget or a larger audit sample raises it."
    text = f"The budget holds at least {percent(low, down=True)} of the captions that make the model copy a training "
    yield Claim("recall", "at_least", low, most, 1 - both, _at(f"{text}image", both), change)
    flagged = budget.filter(pc.is_in(budget["verdict"], value_set=pa.array(CONFIRMED_WORDS)))
    # A caption that is flagged by chance takes at most one family with it, and a missed caption adds at most one.
    families = pc.count_distinct(flagged["family"]).as_py() - (len(flagged) - found.census_low)
    if families > 0:
        low, most = families / (families + found.missed_high), families + found.missed_high
        text = f"The budget holds at least {percent(low, down=True)} of the families of copied images"
        yield Claim("recall_families", "at_least", low, most, 1 - both, _at(text, both), change)


def _of_generations(table: pa.Table, fresh_seeds: int) -> Iterable[Claim]:
    flagged = table.filter(pc.is_in(table["verdict"], value_set=pa.array(CONFIRMED_WORDS)))
    k, n = _sum(flagged["fresh_copies"]), len(flagged) * fresh_seeds
    if not n:
        return
    # The tail of a sum of unlike Bernoulli variables is at most that of the binomial (Hoeffding, 1956).
    alpha = LEVELS["generations"]
    low = 1 - upper_bound(n - k, n, 1 - alpha)
    text = f"With new seeds, at least {percent(low, down=True)} of the generations of the {len(flagged):,} flagged "
    text += f"captions are flagged again ({k:,} of {n:,} were)"
    change = "More new seeds per caption (confirm.fresh_seeds) bring it closer to the true share."
    yield Claim("generations", "at_least", low, n, 1 - alpha, _at(text, alpha), change)


def _sum(counts: pa.ChunkedArray) -> int:
    return int(pc.sum(counts).as_py() or 0)


def _most_rows(captions_of: Mapping[int, int], count: int) -> int:
    """Return the rows of the `count` captions that have the most rows."""
    total = 0
    for rows in sorted(captions_of, reverse=True):
        taken = min(count, captions_of[rows])
        total, count = total + rows * taken, count - taken
    return total


def _part(count: int, captions: int) -> str:
    return percent(count / max(captions, 1), down=True)


def percent(share: float, down: bool = False) -> str:
    """Format a share, rounded in the direction in which the claim stays true: up, or with `down`, down.

    It has one decimal, and two significant digits below 1 %.
    """
    exact = 100 * share
    decimals = max(1, 1 - floor(log10(exact))) if exact > 0 else 1
    scale = 10**decimals
    scaled = round(exact * scale, 6)  # 100 * 0.022 is 2.1999999999999997
    return f"{(floor(scaled) if down else ceil(scaled)) / scale:g} %"


def _at(text: str, alpha: float) -> str:
    return f"{text} ({100 * (1 - alpha):g} % confidence)."
