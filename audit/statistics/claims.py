"""Bound what an audit can claim about captions that it did not generate (docs/explanation/claims.md)."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.schema import CONFIRMED_WORDS
from audit.statistics.intervals import clopper_pearson

MILLION = 1_000_000


def claims(verdicts: pa.Table, scores: pa.Table, captions: int, confidence: float = 0.95) -> dict[str, Any]:
    """Compute the claims as numbers and sentences, for the manifest and the report.

    A caption reproduces a training image if its verdict is verbatim or partial. A sampled caption with the verdict
    `unknown` or `error` might or might not: lower bounds count it as not reproducing, upper bounds as reproducing.

    Args:
        verdicts: (caption_id, verdict) of at least the selected captions.
        scores: (caption_id, selected_by) of at least the selected captions.
        captions: Number of all captions audited.
        confidence: Confidence level of the two-sided intervals.

    Returns:
        `confidence`, `captions`, `prevalence`, `prevalence_verbatim`, `missed`, `recall` and `sentences`. A claim that
        cannot be made is None.
    """
    table = verdicts.select(["caption_id", "verdict"]).join(
        scores.select(["caption_id", "selected_by"]), "caption_id", join_type="left outer"
    )
    sample = table.filter(pc.match_substring(table["selected_by"], "sample"))
    outside = sample.filter(pc.equal(sample["selected_by"], "sample"))
    budget = table.filter(pc.match_substring(table["selected_by"], "budget"))
    found = _count(budget, *CONFIRMED_WORDS)
    result: dict[str, Any] = {
        "confidence": confidence,
        "captions": captions,
        "prevalence": _proportion(sample, confidence, *CONFIRMED_WORDS),
        "prevalence_verbatim": _proportion(sample, confidence, "verbatim"),
        "missed": None,
        "recall": None,
    }
    if outside.num_rows:
        missed = _proportion(outside, confidence, *CONFIRMED_WORDS)
        rest = captions - budget.num_rows
        assert missed is not None
        missed["captions"] = rest
        missed["low_captions"], missed["high_captions"] = floor(rest * missed["low"]), ceil(rest * missed["high"])
        result["missed"] = missed
        if found:
            result["recall"] = {
                "found": found,
                "low": found / (found + rest * missed["high"]),
                "estimate": found / (found + rest * missed["k"] / missed["n"]),
                "high": found / (found + rest * missed["low"]),
            }
    result["sentences"] = _sentences(result)
    return result


def _count(table: pa.Table, *words: str) -> int:
    return int(pc.sum(pc.is_in(table["verdict"], value_set=pa.array(words))).as_py() or 0)


def _proportion(table: pa.Table, confidence: float, *words: str) -> dict[str, Any] | None:
    n = table.num_rows
    if n == 0:
        return None
    k, undetermined = _count(table, *words), _count(table, "unknown", "error")
    low, high = clopper_pearson(k, n, confidence)[0], clopper_pearson(k + undetermined, n, confidence)[1]
    return {"k": k, "n": n, "undetermined": undetermined, "low": low, "high": high}


def _sentences(result: dict[str, Any]) -> list[str]:
    prevalence, missed, recall = result["prevalence"], result["missed"], result["recall"]
    if prevalence is None:
        return ["No audit sample was drawn: nothing is claimed about the captions that were not generated."]
    level = f"{100 * result['confidence']:g} %"
    low, high = (f"{MILLION * prevalence[end]:,.0f}" for end in ("low", "high"))
    sentences = [
        f"Of {prevalence['n']:,} captions drawn at random from all {result['captions']:,}, {prevalence['k']:,} "
        f"reproduced a training image: at least {low} and at most {high} per million captions reproduce "
        f"under this protocol ({level} confidence)."
    ]
    if prevalence["undetermined"]:
        sentences.append(
            f"For {prevalence['undetermined']:,} of the sampled captions no verdict could be reached; "
            "the upper bounds count them as reproducing."
        )
    if missed is not None:
        sentences.append(
            f"Of the {missed['n']:,} sampled captions that the screen had not selected, {missed['k']:,} reproduced: "
            f"among the {missed['captions']:,} captions that it left out, at most "
            f"{missed['high_captions']:,} reproduce ({level})."
        )
    if recall is not None:
        sentences.append(
            f"The screen's selection holds {recall['found']:,} captions that reproduce: at least "
            f"{100 * recall['low']:.0f} % of all that do ({level}; estimate {100 * recall['estimate']:.0f} %)."
        )
    return sentences
