"""Count captions by score and by similarity, for figures."""

from __future__ import annotations

from typing import Literal

import numpy as np

from reports.record.part import Part
from reports.record.source import Source

HistogramName = Literal["scores", "similarities"]
BINS = {"scores": 60, "similarities": 40}
# Every query has a column `value` and one row per caption.
SCORES = {
    "captions": "select score as value from scores",
    "confirmed": "select score as value from verdicts where verdict in ('verbatim', 'partial')",
    "control": "select score as value from control_scores",
}
SIMILARITIES = """select max(similarity) as value from matches
                  where embedder = '{embedder}' and purpose = '{purpose}' group by caption_id"""


class Histogram(Part):
    """Counts of captions per bin; `edges` has one more value than each list in `counts`."""

    edges: list[float]
    counts: dict[str, list[int]]
    cut: float | None  # scores: the lowest score that was selected; similarities: the threshold


def histograms(source: Source) -> dict[HistogramName, Histogram]:
    """Return the histograms that the run has data for."""
    [first] = source.rows("select min(score) as value from scores where selected_by = 'budget'")
    similarities = {
        name: SIMILARITIES.format(embedder=source.embedder, purpose=purpose)
        for name, purpose in (("generated", "discover"), ("control", "control"))
    }
    found: dict[HistogramName, Histogram | None] = {
        "scores": _histogram(source, SCORES, BINS["scores"], first["value"]),
        "similarities": _histogram(source, similarities, BINS["similarities"], source.threshold("verbatim")),
    }
    return {name: histogram for name, histogram in found.items() if histogram}


def _histogram(source: Source, queries: dict[str, str], bins: int, cut: float | None) -> Histogram | None:
    """Count the values of each query in bins between the lowest and the highest value of all."""
    everything = " union all ".join(f"({query})" for query in queries.values())
    [ends] = source.rows(f"select min(value) as low, max(value) as high from ({everything})")
    low, high = ends["low"], ends["high"]
    if low is None:
        return None
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = {name: [0] * bins for name in queries}
    for name, query in queries.items():
        sql = f"""select least(floor((value - $low) / $width), $last)::int as bin, count(*) as n from ({query})
                  where value is not null group by all"""
        for row in source.rows(sql, low=edges[0], width=edges[1] - edges[0], last=bins - 1):
            counts[name][max(row["bin"], 0)] += row["n"]
    return Histogram(edges=edges.tolist(), counts=counts, cut=cut)
