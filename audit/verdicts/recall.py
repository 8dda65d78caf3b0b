"""Split captions into strata by length, script and repetition, and state the recall of the budget in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from audit.calibration.strata import LENGTHS, length_stratum
from audit.schema import CONFIRMED_WORDS
from audit.statistics.bounds import HIGH, LOW, UNDETERMINED, Evidence, Tally, bounds

# The probability with which a line of the table holds. The lines do not hold together.
STRATUM_LEVEL = 1 - HIGH - LOW
_LETTER_BEYOND_LATIN = r"[^\P{L}\p{Latin}]"


class Counted(NamedTuple):
    """A stratum, how its captions were selected (budget | sample | None), and their verdict."""

    by: str
    value: str
    selected_by: str | None
    verdict: str


@dataclass(frozen=True)
class RecallInStratum:
    """What an audit found in one stratum.

    Attributes:
        by: What the strata differ in: length | script | rows.
        value: The stratum.
        captions: Number of its captions.
        census: Its captions of the budget.
        sample: Its sampled captions; given their number, a simple random sample of its captions outside the budget.
        missed_high: At most this many of its captions outside the budget would be flagged.
        recall_low: At least this share of its captions with a true copy is in the budget. None if nothing is known.
    """

    by: str
    value: str
    captions: int
    census: Tally
    sample: Tally
    missed_high: int
    recall_low: float | None


def count(captions: pa.Table) -> Counter[Counted]:
    """Count captions by stratum, by how they were selected, and by verdict. Counts of parts can be added.

    Args:
        captions: (caption, row_count, selected_by, verdict).
    """
    lengths = [(first - 1, length_stratum(first - 1)) for first in LENGTHS[1:]]
    beyond_latin = pc.match_substring_regex(captions["caption"], _LETTER_BEYOND_LATIN)
    strata = {
        "length": _binned(pc.utf8_length(captions["caption"]), lengths, length_stratum(LENGTHS[-1])),
        "script": pc.if_else(beyond_latin, "not only Latin", "Latin"),
        "rows": _binned(captions["row_count"], [(1, "1 row"), (9, "2 to 9 rows")], "10 rows or more"),
    }
    counts: Counter[Counted] = Counter()
    for by, values in strata.items():
        table = pa.table([values, captions["selected_by"], captions["verdict"]], ["value", "selected_by", "verdict"])
        for row in table.group_by(table.column_names).aggregate([([], "count_all")]).to_pylist():
            counts[Counted(by, row["value"], row["selected_by"], row["verdict"])] += row["count_all"]
    return counts


def recall_by_stratum(
    counts: Mapping[Counted, int],
    controls: tuple[int, int] | None,
    until: float | None = None,
    sample_limit: int | None = None,
) -> Iterator[RecallInStratum]:
    """Yield what an audit found in each stratum, by kind, the stratum with the most captions first.

    Args:
        counts: As returned by `count`, for all captions.
        controls: As for `audit.statistics.claims.claims`.
        until: As in `audit.statistics.bounds.Evidence`.
        sample_limit: As in `audit.statistics.bounds.Evidence`.
    """
    m, f = controls or (None, 0)
    totals: Counter[tuple[str, str]] = Counter()
    for counted, captions in counts.items():
        totals[counted.by, counted.value] += captions
    kinds = list(dict.fromkeys(by for by, _ in totals))
    for (by, value), captions in sorted(totals.items(), key=lambda one: (kinds.index(one[0][0]), -one[1], one[0])):
        census, sample = (
            _tally({each.verdict: n for each, n in counts.items() if each[:3] == (by, value, how)})
            for how in ("budget", "sample")
        )
        found = bounds(Evidence(captions, census, sample, m, f, until, sample_limit))
        yield RecallInStratum(by, value, captions, census, sample, found.missed_high, found.recall_low)


def _tally(captions_of: Mapping[str, int]) -> Tally:
    flagged, undetermined = (
        sum(captions_of.get(word, 0) for word in words) for words in (CONFIRMED_WORDS, UNDETERMINED)
    )
    return Tally(sum(captions_of.values()), flagged, undetermined)


def _binned(numbers: pa.ChunkedArray, upto: list[tuple[int, str]], beyond: str) -> pa.ChunkedArray:
    """Name the first bin whose upper end is at least the number."""
    names = pc.if_else(pc.less_equal(numbers, upto[-1][0]), upto[-1][1], beyond)
    for most, name in reversed(upto[:-1]):
        names = pc.if_else(pc.less_equal(numbers, most), name, names)
    return names
