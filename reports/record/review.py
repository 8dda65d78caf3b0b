"""Read what people decided in a review: the raters, their agreement and their errors, and the outcome."""

from __future__ import annotations

from collections import Counter

from audit.schema import OUTCOME_WORDS, PAIR_TYPES
from audit.statistics.claims import reviewed
from audit.statistics.raters import LEAST_RATERS, Agreement, Rater, agreements, human_verdicts, raters, upheld
from reports.record.part import Part
from reports.record.source import Source


class HumanVerdict(Part):
    """What reviewers decided about a caption."""

    outcome: str
    copied: int
    not_copied: int
    raters: int


class Review(Part):
    """What people decided (`crossaudit review`). Rates and decisions are those of `audit.statistics.raters`."""

    raters: list[Rater]
    panel: int
    least: int
    pairs: int
    types: dict[str, int]
    agreements: list[Agreement]
    outcomes: dict[str, int]
    not_reviewed: int
    false_positive: tuple[int, int]
    false_negative: tuple[int, int]
    bound: float
    claim: str | None  # a sentence that holds on its own, apart from the claims of the audit


def read(source: Source) -> tuple[Review | None, dict[str, HumanVerdict]]:
    """Return what the raters answered, and what they decided per caption_id; nothing if nobody has judged a pair."""
    pairs = source.connection.sql("select * exclude (image) from review_pairs").to_arrow_table()
    reviews = source.connection.sql("from reviews").to_arrow_table()
    if not len(reviews):
        return None, {}
    found, decision, claim = raters(pairs, reviews), upheld(pairs, reviews), reviewed(pairs, reviews)
    cases = human_verdicts(pairs, reviews).to_pylist()
    counts = Counter(row["outcome"] for row in cases)
    types = Counter(pairs["pair_type"].to_pylist())
    [confirmed] = source.rows("select count(*) as captions from verdicts where verdict in ('verbatim', 'partial')")
    review = Review(
        raters=found,
        panel=sum(rater.finished for rater in found),
        least=LEAST_RATERS,
        pairs=len(pairs),
        types={word: types[word] for word in PAIR_TYPES},
        agreements=agreements(reviews),
        outcomes={word: counts[word] for word in OUTCOME_WORDS},
        not_reviewed=confirmed["captions"] - len(cases),
        false_positive=decision.false_positive,
        false_negative=decision.false_negative,
        bound=decision.false_positive_bound(),
        claim=claim.sentence if claim else None,
    )
    return review, {row.pop("caption_id"): HumanVerdict(**row) for row in cases if row["raters"]}
