"""From matches to verdicts: one verdict a caption (design, 2 and 3).

N captions, in the order of the table `captions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.schema import SUPPORT_WORDS, VERDICTS
from audit.statistics.intervals import conformal_p
from audit.verdicts.copies import PARTIAL, VERBATIM, copies, families, near
from audit.verdicts.risk import risk
from audit.verdicts.thresholds import Threshold


@dataclass(frozen=True)
class ImageCounts:
    """What could be looked up: how many training images were listed, how many and which could not be read."""

    listed: int
    unreadable: int = 0
    unreadable_ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))


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
    """One verdict a caption (schema VERDICTS), in the order of `captions`; `p_not_reproduced` is still null.

    Captions may be judged in parts, beside the same other tables: no verdict depends on what other captions are given.
    Tables as in audit.schema (of `generations` and `rows` only the columns used: no pixels are needed);
    `embedder` decides, by `thresholds["verbatim"]` and `thresholds["region"]`; `copied`: `copied_images` of `matches`
    by both; `links`: as of `families`; `failures`: (caption_id, error), what failed outside `generations`: the errors
    of `screen` and the rows of `errors` that name a caption.
    """
    ids = captions["caption_id"].combine_chunks()
    score = _lookup(ids, scores)
    mine = matches.filter(pc.field("embedder") == embedder).drop_columns("embedder")
    found = _lookup(ids, _discovered(generations, mine))
    selected = _true(pc.is_valid(score["selected_by"]))

    best = _lookup(ids, _best_copies(copied))
    whole, region = (_true(pc.equal(best["copy_type"], how)) for how in (VERBATIM, PARTIAL))
    own = rows.select(["caption_id", "image_id"]).filter(pc.field("caption_id").isin(ids.filter(pa.array(selected))))
    verdict = np.select(
        [whole, region, selected & ~_positive(found["finished"])],
        [VERBATIM, PARTIAL, "error"],
        np.where(selected, "unconfirmed", np.where(_true(pc.is_null(score["score"])), "error", "not_selected")),
    ).astype(object)
    negative = verdict == "unconfirmed"
    verdict[negative & (images.listed == 0)] = "unknown"
    verdict[negative & (images.listed > 0) & ~_positive(found["looked_up"])] = "error"
    verdict[(verdict == "unconfirmed") & _blind(ids, own, images, max_unreadable_fraction)] = "unknown"

    k, n = _reproduced(ids, mine, region, whole | region, thresholds)
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
        "support": _support(pa.array(whole | region), k, n),
        "near_miss": missed,
        "image_id": pc.coalesce(best["image_id"], found["image_id"]),
        "matched_own_image": _matched_own(ids, own, copied),
        "similarity": found["similarity"],
        "region_similarity": found["region_similarity"],
        "family": _lookup(ids, families(copied, links))["family"],
        "image_cluster_size": score["image_cluster_size"],
        "error": _messages(ids, found["error"], failures, verdict),
    }
    counts = captions["row_count"], k, n, score["image_cluster_size"]
    parts = zip(verdict, *(column.to_pylist() for column in counts), strict=True)
    columns["risk"] = pa.array([risk(*part) for part in parts], pa.string())
    return pa.table({name: columns[name] for name in VERDICTS.names}, schema=VERDICTS)


def negatives(verdicts: pa.Table, scores: pa.Table) -> np.ndarray:
    """The scores [M] of the captions of the audit sample that do not reproduce: the null of `p_not_reproduced`."""
    found = _lookup(verdicts["caption_id"].combine_chunks(), scores)
    return verdicts["score"].filter(pa.array(_negative(verdicts, found["selected_by"]))).to_numpy()


def with_p_not_reproduced(verdicts: pa.Table, scores: pa.Table, control_M: np.ndarray) -> pa.Table:
    """Verdicts with conformal p-values against `negatives` of all captions (Jin and Candes, arXiv 2210.01408).

    A small one: scored unlike a caption that does not reproduce. Null without a sample, or without a score.
    """
    if not len(control_M):
        return verdicts
    found = _lookup(verdicts["caption_id"].combine_chunks(), scores)
    score_N = verdicts["score"].to_numpy().astype(float)
    p_N = conformal_p(control_M, score_N)
    one_N, m = _negative(verdicts, found["selected_by"]), len(control_M)
    p_N[one_N] = (p_N[one_N] * (m + 1) - 1) / m  # against the others: its own score was counted twice
    at = verdicts.schema.get_field_index("p_not_reproduced")
    return verdicts.set_column(at, verdicts.field(at), pa.array(p_N, mask=np.isnan(score_N)))


def _negative(verdicts: pa.Table, selected_by: pa.ChunkedArray) -> np.ndarray:
    sampled_N, scored_N = pc.match_substring(selected_by, "sample"), pc.is_valid(verdicts["score"])
    return _true(sampled_N) & _true(scored_N) & _true(pc.equal(verdicts["verdict"], "unconfirmed"))


def _lookup(ids: pa.Array, table: pa.Table) -> pa.Table:
    """The row of `table` (unique by caption_id) for each id; nulls where it has none."""
    return table.take(pc.index_in(ids, value_set=table["caption_id"]))


def _true(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False)).astype(bool)


def _positive(counts: pa.ChunkedArray) -> np.ndarray:
    return _true(pc.greater(counts, 0))


def _best_copies(copied: pa.Table) -> pa.Table:
    """(caption_id, how, image_id) of the image that each caption copied best, a copy of the whole before any other."""
    order = [("copy_type", "descending"), ("similarity", "descending"), ("image_id", "ascending")]
    best = copied.sort_by(order).group_by("caption_id", use_threads=False)
    best = best.aggregate([("copy_type", "first"), ("image_id", "first")])
    return best.rename_columns(["caption_id", "copy_type", "image_id"])


def _discovered(generations: pa.Table, mine: pa.Table) -> pa.Table:
    """Per caption with discover generations: how many finished, how many were looked up, and the best match."""
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
            ("similarity", "count"),
            ("similarity", "max"),
            ("region_similarity", "max"),
            ("error", "first"),
        ]
    )
    summary = summary.rename_columns(
        ["caption_id", "finished", "looked_up", "similarity", "region_similarity", "error"]
    )
    best = mine.sort_by([("similarity", "descending"), ("image_id", "ascending")])
    best = best.group_by("caption_id", use_threads=False).aggregate([("image_id", "first")])
    summary = summary.append_column("image_id", _lookup(summary["caption_id"], best)["image_id_first"])
    return summary


def _blind(ids: pa.Array, own: pa.Table, images: ImageCounts, max_unreadable_fraction: float) -> np.ndarray:
    """Captions for which no match proves nothing: [N] bool (design, 2: `unknown`)."""
    own = own.filter(pc.field("image_id").is_valid())
    unread = own.filter(pc.field("image_id").isin(images.unreadable_ids))["caption_id"]
    blind = _true(pc.is_in(ids, value_set=unread))
    if images.listed and images.unreadable / images.listed > max_unreadable_fraction:
        blind |= ~_true(pc.is_in(ids, value_set=own["caption_id"]))
    return blind


def _reproduced(
    ids: pa.Array,
    mine: pa.Table,
    partial: np.ndarray,
    confirmed: np.ndarray,
    thresholds: Mapping[str, Threshold],
) -> tuple[pa.Array, pa.Array]:
    """How many fresh generations of each confirmed caption are copies again, of those that were looked up.

    Of a `partial` caption one copied region is enough.
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
    """What fresh seeds say of each confirmed caption (SUPPORT_WORDS); null for the others."""
    reproduced, not_reproduced, untested = SUPPORT_WORDS
    tried = pc.fill_null(pc.greater(n, 0), False)
    again = pc.fill_null(pc.greater(k, 0), False)
    word = pc.if_else(tried, pc.if_else(again, reproduced, not_reproduced), untested)
    return pc.if_else(confirmed, word, pa.scalar(None, pa.string()))


def _near(mine: pa.Table, thresholds: Mapping[str, Threshold]) -> pa.Array:
    """The captions with a `discover` generation that looks like a copy to the embedder: by its floors alone."""
    mine = mine.filter(pc.field("purpose") == "discover")
    alike = np.zeros(len(mine), bool)
    for kind in ("verbatim", "region"):
        alike |= near(mine, kind, thresholds[kind])
    return mine.filter(pa.array(alike))["caption_id"].combine_chunks()


def _matched_own(ids: pa.Array, own: pa.Table, copied: pa.Table) -> pa.ChunkedArray:
    """Whether a confirmed caption copied an image of its own; null if not confirmed or if it has none."""
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
    """Why something failed; a caption can have a verdict and still tell of a seed that failed."""
    first = failures.filter(pc.field("error").is_valid()).group_by("caption_id", use_threads=False)
    other = _lookup(ids, first.aggregate([("error", "first")]))["error_first"]
    unnamed = pc.if_else(pa.array(verdict == "error"), "no result was written", pa.scalar(None, pa.string()))
    return pc.coalesce(generation_errors, other, unnamed)
