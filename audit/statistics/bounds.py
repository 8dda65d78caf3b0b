"""Bound how many captions are flagged and how many have a true copy (docs/explanation/claims.md).

The captions of the budget are a census: all of them were generated. Of the captions outside the budget, a random sample
was generated. Every bound follows from events that each hold with a known probability. So all bounds hold together with
a probability of at least 1 minus the sum of the levels in LEVELS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from audit.schema import CONFIRMED_WORDS
from audit.statistics.finite import at_least, at_most, last, sequence
from audit.statistics.intervals import upper_bound

# The probability with which each event may fail.
LEVELS = {
    "sample_high": 0.025,  # the sample bounds from above how many captions outside the budget are flagged
    "sample_low": 0.01,  # ... and from below
    "false_positive_rate": 0.005,  # the control captions bound the rate of false positives
    "census_false_positives": 0.0025,  # at that rate, the census has at most so many
    "sample_false_positives": 0.0025,  # ... and the sample
    "generations": 0.005,  # the fresh seeds bound how many generations of flagged captions are copies
}
# The levels of the events that an upper end and a lower end rest on.
HIGH = LEVELS["sample_high"]
LOW = sum(LEVELS[name] for name in ("sample_low", "false_positive_rate", "census_false_positives"))
LOW += LEVELS["sample_false_positives"]
UNDETERMINED = ("unknown", "error")


@dataclass(frozen=True)
class Tally:
    """The verdicts of a group of generated captions.

    Attributes:
        captions: Number of captions.
        flagged: Captions that the protocol flags: verdict `verbatim` or `partial`.
        undetermined: Captions whose verdict is `unknown` or `error`.
    """

    captions: int
    flagged: int
    undetermined: int

    def __add__(self, other: Tally) -> Tally:
        """Add the counts of other captions."""
        return Tally(
            self.captions + other.captions,
            self.flagged + other.flagged,
            self.undetermined + other.undetermined,
        )

    @classmethod
    def of(cls, verdicts: pa.ChunkedArray) -> Tally:
        """Count the verdicts of some captions."""
        flagged, undetermined = (
            int(pc.sum(pc.is_in(verdicts, value_set=pa.array(words))).as_py() or 0)
            for words in (CONFIRMED_WORDS, UNDETERMINED)
        )
        return cls(len(verdicts), flagged, undetermined)


@dataclass(frozen=True)
class Evidence:
    """What an audit counted.

    Attributes:
        captions: Number of captions in the population.
        census: The captions of the budget.
        sample: The sampled captions. They are a simple random sample of the captions outside the budget.
        controls: Control captions that set no threshold. None if there are none.
        false_positives: How many of those the protocol flags.
        until: If sampling went on until a bound was reached, the share of the captions outside the budget at which it
            was to stop. None for a sample of fixed size.
        sample_limit: The largest sample that could have been drawn. None for a sample of fixed size.
    """

    captions: int
    census: Tally
    sample: Tally
    controls: int | None = None
    false_positives: int = 0
    until: float | None = None
    sample_limit: int | None = None

    @property
    def rest(self) -> int:
        """Number of captions outside the budget."""
        return self.captions - self.census.captions

    @property
    def bounds_rest(self) -> bool:
        """Whether there is a sample of the captions outside the budget, or no such captions."""
        return bool(self.sample.captions) or not self.rest


@dataclass(frozen=True)
class Bounds:
    """Bounds on numbers of captions, which hold together (LEVELS).

    Attributes:
        flagged_low: At least this many captions would be flagged by the protocol.
        flagged_high: At most this many. It also bounds the captions with a true copy, for a copy is flagged if its
            image and all its seeds are there, and counts as undetermined if they are not.
        missed_high: At most this many captions outside the budget would be flagged.
        false_positive_rate_high: The protocol flags at most this share of captions without a copy. None if it was not
            measured.
        census_low: At least this many captions of the budget have a true copy; None as above.
        missed_low: At least this many captions outside the budget have a true copy; None as above.
    """

    flagged_low: int
    flagged_high: int
    missed_high: int
    false_positive_rate_high: float | None
    census_low: int | None
    missed_low: int | None

    @property
    def copies_low(self) -> int | None:
        """At least this many captions have a true copy; None if the rate of false positives is unknown."""
        return None if self.census_low is None or self.missed_low is None else self.census_low + self.missed_low

    @property
    def recall_low(self) -> float | None:
        """At least this share of the captions with a true copy is in the budget; None if nothing is known."""
        if not self.census_low:
            return None
        return self.census_low / (self.census_low + self.missed_high)


def bounds(evidence: Evidence) -> Bounds:
    """Bound how many captions are flagged and how many have a true copy.

    Upper ends count undetermined captions as flagged, lower ends count them as not flagged. Lower ends on true copies
    subtract the false positives that the control captions allow. They assume that captions without a copy are flagged
    independently of each other, with the probability at which control captions are.
    """
    census, sample = evidence.census, evidence.sample
    missed_high = _missed_at_most(evidence)
    low = _missed_at_least(evidence, sample.flagged)
    rate, census_low, missed_low = None, None, None
    if evidence.controls:
        rate = upper_bound(evidence.false_positives, evidence.controls, 1 - LEVELS["false_positive_rate"])
        census_low = true_low(census, rate, LEVELS["census_false_positives"])
        # Where sampling stopped depends on what was found, but the false positives are no more than in all draws.
        drawn = replace(sample, captions=evidence.sample_limit or sample.captions)
        missed_low = _missed_at_least(evidence, true_low(drawn, rate, LEVELS["sample_false_positives"]))
    return Bounds(
        flagged_low=census.flagged + low,
        flagged_high=census.flagged + census.undetermined + missed_high,
        missed_high=missed_high,
        false_positive_rate_high=rate,
        census_low=census_low,
        missed_low=missed_low,
    )


def _missed_at_most(evidence: Evidence) -> int:
    """Bound from above how many captions outside the budget would be flagged.

    If sampling went on until a bound was reached, the bound is that of a confidence sequence, which holds wherever
    sampling stops.
    """
    k, n, alpha = (
        evidence.sample.flagged + evidence.sample.undetermined,
        evidence.sample.captions,
        LEVELS["sample_high"],
    )
    if evidence.until is not None:
        return sequence(k, n, evidence.rest, alpha, evidence.until)[1]
    return at_most(k, n, evidence.rest, alpha)


def _missed_at_least(evidence: Evidence, k: int) -> int:
    """Bound the captions outside the budget from below, given that at least k sampled ones count."""
    n, alpha = evidence.sample.captions, LEVELS["sample_low"]
    if evidence.until is not None:
        return sequence(k, n, evidence.rest, alpha, evidence.until)[0]
    return at_least(k, n, evidence.rest, alpha)


def true_low(tally: Tally, rate: float, alpha: float) -> int:
    """Return the smallest number of true copies that leaves no more false positives than the rate allows."""

    def too_few(true: int) -> bool:
        return tally.flagged - true > stats.binom.ppf(1 - alpha, tally.captions - true, rate)

    return last(0, tally.flagged, too_few) + 1 if tally.flagged and too_few(0) else 0
