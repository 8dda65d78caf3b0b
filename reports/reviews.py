"""Read what the report shows about a review: the raters, their agreement and their errors, and what they decided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import duckdb

from audit.schema import OUTCOME_WORDS
from audit.statistics.claims import reviewed
from audit.statistics.raters import LEAST_RATERS, agreements, human_verdicts, raters, upheld


def read(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """Return what the raters answered and decided, or None if nobody has judged a pair."""
    pairs = connection.sql("select * exclude (image) from review_pairs").to_arrow_table()
    reviews = connection.sql("from reviews").to_arrow_table()
    if not len(reviews):
        return None
    found, decision = raters(pairs, reviews), upheld(pairs, reviews)
    cases = human_verdicts(pairs, reviews).to_pylist()
    counts = Counter(row["outcome"] for row in cases)
    [[confirmed]] = connection.sql("select count(*) from verdicts where verdict in ('verbatim', 'partial')").fetchall()
    return {
        "raters": found,
        "panel": sum(rater.finished for rater in found),
        "least": LEAST_RATERS,
        "pairs": len(pairs),
        "types": Counter(pairs["pair_type"].to_pylist()),
        "agreements": agreements(reviews),
        "outcomes": {word: counts[word] for word in OUTCOME_WORDS},
        "decided": {row["caption_id"]: row for row in cases if row["raters"]},
        "not_reviewed": confirmed - len(cases),
        "false_positive": decision.false_positive,
        "false_negative": decision.false_negative,
        "claim": reviewed(pairs, reviews),
        "bound": decision.false_positive_bound(),
    }
