"""Judge captions from their matches: one verdict per caption (docs/explanation/confirmation.md).

Shapes: N captions, in the order of the table `captions`; M captions of the audit sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audit.schema import SUPPORT_WORDS, VERDICTS
from audit.statistics.intervals import conformal_p
from audit.verdicts.copies import PARTIAL, VERBATIM, above_floor, best_copies, copies, families
from audit.verdicts.risk import risk
from audit.verdicts.thresholds import Threshold

# Why a caption has the verdict `unknown` if no image of its own is in doubt.
TOO_FEW = "too few of the training images could be looked up"


@dataclass(frozen=True)
class ImageCounts:
    """The training images that could be looked up.

    Attributes:
        listed: Number of images.
        unreadable: How many of them could not be read.
        unreadable_ids: The ids of those.
        paired: Whether every row of the dataset should have an image of its own.
    """

    listed: int
    unreadable: int = 0
    unreadable_ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    paired: bool = False


def judge(
    *,
    captions: pa.Table,
    scores: pa.Table,
    perturbations: pa.Table,
    generations: pa.Table,
    matches: pa.Table,
    copied: pa.Table,
    links: pa.Table,
    rows: pa.Table,
    embedder: str,
    thresholds: Mapping[str, Threshold],
    images: ImageCounts,
    failures: pa.Table,
    max_unreadable_fraction: float = 0.01,
) -> pa.Table:
    """Judge each caption: one row per caption (schema VERDICTS), in the order of `captions`.

    Captions may be judged in parts, as long as the other tables are the same: no verdict depends on which other
    captions are passed in. Tables have the schemas of `audit.schema`; only the columns that are used are needed, so
    `generations` and `rows` need no pixels.

    Args:
        captions: The captions to judge.
        scores: Scores of the screen and how each caption was selected.
        perturbations: Perturbation margins of captions.
        generations: Generations of the selected captions.
        matches: Nearest training images of the generations.
        copied: `copied_images` of `matches` for both thresholds.
        links: Links between copied images, as for `families`.
        rows: Which captions and images belong together in the dataset.
        embedder: The embedder that decides.
        thresholds: Its thresholds, under "verbatim" and "region".
        images: How many training images could be looked up.
        failures: (caption_id, error), failures outside `generations`: errors of the screen, and rows of `errors`
            that name a caption.
        max_unreadable_fraction: If a larger fraction of the images is unreadable, captions without an image of their
            own become `unknown` when nothing matches.

    Returns:
        The verdicts. `p_not_reproduced` is still null; `with_p_not_reproduced` fills it in.
    """
    ids = captions["caption_id"].combine_chunks()
    score = _lookup(ids, scores)
    mine = matches.filter(pc.field("embedder") == embedder).drop_columns("embedder")
    found = _lookup(ids, _discovered(generations, mine))
    selected = _true(pc.is_valid(score["selected_by"]))

    best = _lookup(ids, best_copies(copied))
    own = rows.select(["caption_id", "image_id"]).filter(pc.field("caption_id").isin(ids.filter(pa.array(selected))))
    doubt = _doubts(ids, found, own, images, max_unreadable_fraction)
    verdict = _verdicts(score, found, best["copy_type"], images.listed, doubt)
    why_unknown = pa.array(doubt, pa.string(), mask=verdict != "unknown")
    region, confirmed = verdict == PARTIAL, (verdict == VERBATIM) | (verdict == PARTIAL)
    k, n = _reproduced(ids, mine, region, confirmed, thresholds)
    missed = pa.array((verdict == "unconfirmed") & _true(pc.is_in(ids, value_set=_near(mine, thresholds))))
    columns = {
        "caption_id": ids,
        "caption": captions["caption"],
        "row_count": captions["row_count"],
        "verdict": pa.array(verdict, pa.string()),
        "score": score["score"],
        "perturbation_margin": _lookup(ids, perturbations)["perturbation_margin"],
        "p_unseen": score["p_unseen"],
        "p_not_reproduced": pa.nulls(len(ids), pa.float64()),
        "fresh_copies": k,
        "fresh_generations": n,
        "support": _support(pa.array(confirmed), k, n),
        "near_miss": missed,
        "image_id": pc.coalesce(best["image_id"], found["image_id"]),
        "matched_own_image": _matched_own(ids, own, copied),
        "similarity": found["similarity"],
        "region_similarity": found["region_similarity"],
        "family": _lookup(ids, families(copied, links))["family"],
        "image_cluster_size": score["image_cluster_size"],
        "error": pc.coalesce(_messages(ids, found["error"], failures, verdict), why_unknown),
    }
    counts = captions["row_count"], k, n, score["image_cluster_size"]
    columns["risk"] = pa.array(map(risk, verdict, *(column.to_pylist() for column in counts)), pa.string())
    return pa.table({name: columns[name] for name in VERDICTS.names}, schema=VERDICTS)


def negatives(verdicts: pa.Table, scores: pa.Table) -> np.ndarray:
    """Return the scores [M] of sampled captions that are not flagged: the reference for `p_not_reproduced`."""
    found = _lookup(verdicts["caption_id"].combine_chunks(), scores)
    return verdicts["score"].filter(pa.array(_negative(verdicts, found["selected_by"]))).to_numpy()


def with_p_not_reproduced(verdicts: pa.Table, scores: pa.Table, control_M: np.ndarray) -> pa.Table:
    """Add conformal p-values against the `negatives` of all captions (Jin and Candes, arXiv 2210.01408).

    A small p-value means that the caption scored unlike captions that do not reproduce. The sample is drawn from
    outside the budget, so captions of the budget have no p-value.

    Args:
        verdicts: Rows of VERDICTS.
        scores: Scores of the same captions.
        control_M: Scores of the negatives, from `negatives`.

    Returns:
        `verdicts` with `p_not_reproduced`, which is null if there is no sample, or if the caption has no score or is
        in the budget.
    """
    if not len(control_M):
        return verdicts
    found = _lookup(verdicts["caption_id"].combine_chunks(), scores)
    score_N = verdicts["score"].to_numpy().astype(float)
    p_N = conformal_p(control_M, score_N)
    one_N, m = _negative(verdicts, found["selected_by"]), len(control_M)
    p_N[one_N] = (p_N[one_N] * (m + 1) - 1) / m  # compare a negative with the others only: it counted itself
    at = verdicts.schema.get_field_index("p_not_reproduced")
    in_budget_N = _true(pc.equal(found["selected_by"], "budget"))
    return verdicts.set_column(at, verdicts.field(at), pa.array(p_N, mask=np.isnan(score_N) | in_budget_N))


def _negative(verdicts: pa.Table, selected_by: pa.ChunkedArray) -> np.ndarray:
    sampled_N, scored_N = pc.equal(selected_by, "sample"), pc.is_valid(verdicts["score"])
    return _true(sampled_N) & _true(scored_N) & _true(pc.equal(verdicts["verdict"], "unconfirmed"))


def _lookup(ids: pa.Array, table: pa.Table) -> pa.Table:
    """Return the row of `table` (unique by caption_id) for each id; nulls for an id that is not in the table."""
    return table.take(pc.index_in(ids, value_set=table["caption_id"]))


def _true(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False)).astype(bool)


def _positive(counts: pa.ChunkedArray) -> np.ndarray:
    return _true(pc.greater(counts, 0))


def _discovered(generations: pa.Table, mine: pa.Table) -> pa.Table:
    """Summarise `discover` generations per caption: how many finished, how many were looked up, the best match."""
    keys = ["caption_id", "seed"]
    mine = mine.filter(pc.field("purpose") == "discover")
    best = mine.group_by(keys).aggregate([("similarity", "max"), ("region_similarity", "max")])
    best = best.rename_columns([name.removesuffix("_max") for name in best.column_names])
    runs = generations.filter(pc.field("purpose") == "discover").select([*keys, "status", "error"])
    runs = runs.append_column("finished", pc.cast(pc.equal(runs["status"], "ok"), pa.int64()))
    runs = runs.join(best, keys, join_type="left outer").sort_by([(name, "ascending") for name in keys])
    summary = runs.group_by("caption_id", use_threads=False).aggregate(
        [
            ("finished", "sum"),
            ("finished", "count"),
            ("similarity", "count"),
            ("similarity", "max"),
            ("region_similarity", "max"),
            ("error", "first"),
        ]
    )
    summary = summary.rename_columns(
        ["caption_id", "finished", "generations", "looked_up", "similarity", "region_similarity", "error"]
    )
    best = mine.sort_by([("similarity", "descending"), ("image_id", "ascending")])
    best = best.group_by("caption_id", use_threads=False).aggregate([("image_id", "first")])
    summary = summary.append_column("image_id", _lookup(summary["caption_id"], best)["image_id_first"])
    return summary


def _verdicts(
    score: pa.Table, found: pa.Table, copy_type: pa.ChunkedArray, listed: int, doubt: npt.NDArray[np.object_]
) -> npt.NDArray[np.object_]:
    """Decide the verdict of each caption: [N] text.

    Args:
        score: The score of each caption and how it was selected.
        found: What its generations showed, from `_discovered`.
        copy_type: VERBATIM, PARTIAL or null.
        listed: Number of training images.
        doubt: Why a caption cannot be cleared, from `_doubts`.
    """
    selected = _true(pc.is_valid(score["selected_by"]))
    whole, region = (_true(pc.equal(copy_type, kind)) for kind in (VERBATIM, PARTIAL))
    verdict = np.select(
        [whole, region, selected & ~_positive(found["finished"])],
        [VERBATIM, PARTIAL, "error"],
        np.where(selected, "unconfirmed", np.where(_true(pc.is_null(score["score"])), "error", "not_selected")),
    ).astype(object)
    if not listed:
        verdict[verdict == "unconfirmed"] = "unknown"
    verdict[(verdict == "unconfirmed") & ~_positive(found["looked_up"])] = "error"
    verdict[(verdict == "unconfirmed") & (doubt != np.array(None))] = "unknown"
    return verdict


def _doubts(
    ids: pa.Array, found: pa.Table, own: pa.Table, images: ImageCounts, max_unreadable_fraction: float
) -> npt.NDArray[np.object_]:
    """Return why a caption could not be cleared if nothing matched: [N] text, None if it could.

    Its verdict is then `unknown` (docs/explanation/confirmation.md).
    """
    paired = own.filter(pc.field("image_id").is_valid())
    reason = np.full(len(ids), None, object)
    if not images.listed:
        reason[:] = TOO_FEW
    elif images.unreadable / images.listed > max_unreadable_fraction:
        reason[~_true(pc.is_in(ids, value_set=paired["caption_id"]))] = TOO_FEW
    if images.paired:
        unpaired = own.filter(pc.field("image_id").is_null())["caption_id"]
        reason[_true(pc.is_in(ids, value_set=unpaired))] = "a row of the caption has no image of its own"
    unread = own.filter(pc.field("image_id").isin(images.unreadable_ids))["caption_id"]
    reason[_true(pc.is_in(ids, value_set=unread))] = "an image of the caption could not be read"
    reason[_true(pc.less(found["finished"], found["generations"]))] = "a generation failed"
    return reason


def _reproduced(
    ids: pa.Array,
    mine: pa.Table,
    partial: np.ndarray,
    confirmed: np.ndarray,
    thresholds: Mapping[str, Threshold],
) -> tuple[pa.Array, pa.Array]:
    """Count, per confirmed caption, the fresh generations that are copies and those that were looked up.

    For a `partial` caption, a copied region counts as a copy.
    """
    fresh = mine.filter(pc.field("purpose") == "fresh")
    whole, part = copies(fresh, thresholds)
    by_region = _true(pc.is_in(fresh["caption_id"], value_set=ids.filter(pa.array(partial))))
    fresh = fresh.append_column("copy", pa.array((whole | (by_region & part)).astype(np.int64)))
    runs = fresh.group_by(["caption_id", "seed"]).aggregate([("copy", "max")])
    counts = _lookup(ids, runs.group_by("caption_id").aggregate([("copy_max", "sum"), ("copy_max", "count")]))
    null = pa.scalar(None, pa.int64())
    k, n = (pc.if_else(pa.array(confirmed), counts[name], null) for name in ("copy_max_sum", "copy_max_count"))
    return k.combine_chunks(), n.combine_chunks()


def _support(confirmed: pa.Array, k: pa.Array, n: pa.Array) -> pa.Array:
    """Say what fresh seeds showed for each confirmed caption (SUPPORT_WORDS); null for the others."""
    reproduced, not_reproduced, untested = SUPPORT_WORDS
    tried = pc.fill_null(pc.greater(n, 0), False)
    again = pc.fill_null(pc.greater(k, 0), False)
    word = pc.if_else(tried, pc.if_else(again, reproduced, not_reproduced), untested)
    return pc.if_else(confirmed, word, pa.scalar(None, pa.string()))


def _near(mine: pa.Table, thresholds: Mapping[str, Threshold]) -> pa.Array:
    """Find captions with a `discover` generation that looks like a copy to the embedder, judged by its floors alone."""
    mine = mine.filter(pc.field("purpose") == "discover")
    alike = np.zeros(len(mine), bool)
    for kind in ("verbatim", "region"):
        alike |= above_floor(mine, kind, thresholds[kind])
    return mine.filter(pa.array(alike))["caption_id"].combine_chunks()


def _matched_own(ids: pa.Array, own: pa.Table, copied: pa.Table) -> pa.ChunkedArray:
    """Tell whether each confirmed caption copied an image of its own.

    Null if the caption is not confirmed or has no image of its own.
    """
    own = own.filter(pc.field("image_id").is_valid())
    both = own.join(copied.select(["caption_id", "image_id"]), ["caption_id", "image_id"], join_type="inner")
    known = pc.and_(
        pc.is_in(ids, value_set=copied["caption_id"]),
        pc.is_in(ids, value_set=own["caption_id"]),
    )
    return pc.if_else(known, pc.is_in(ids, value_set=both["caption_id"]), pa.scalar(None, pa.bool_()))


def _messages(
    ids: pa.Array, generation_errors: pa.ChunkedArray, failures: pa.Table, verdict: np.ndarray
) -> pa.ChunkedArray:
    """Return why something failed for each caption; a caption with a verdict may still have a seed that failed."""
    first = failures.filter(pc.field("error").is_valid()).group_by("caption_id", use_threads=False)
    other = _lookup(ids, first.aggregate([("error", "first")]))["error_first"]
    unnamed = pc.if_else(pa.array(verdict == "error"), "no result was written", pa.scalar(None, pa.string()))
    return pc.coalesce(generation_errors, other, unnamed)
