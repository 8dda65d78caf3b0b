"""From matches to verdicts: thresholds from null captions, one verdict a caption, families (design, 2 and 3).

N captions, in the order of the table `captions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from audit.errors import AuditError
from audit.risk import risk
from audit.schema import VERDICTS
from audit.statistics import conformal_p, nulls_needed

# Where there is no null: 0.75 is 90 % precision on DISC for SSCD (arXiv 2202.10261), 0.5 the looser rule
# of the literature on diffusion models (Somepalli et al., arXiv 2212.03860).
PUBLISHED = {"verbatim": 0.75, "region": 0.5}


@dataclass(frozen=True)
class Threshold:
    """A similarity from which on an image counts as copied; `source`: null | configured | published."""

    value: float
    source: str
    null_n: int = 0


@dataclass(frozen=True)
class Images:
    """What could be looked up: how many training images were listed, how many and which could not be read."""

    listed: int
    unreadable: int = 0
    unreadable_ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))


def threshold_from_null(maxima: np.ndarray, rate: float) -> float:
    """The ceil((m + 1)(1 - rate))-th smallest of m null maxima: a null caption exceeds it at most at this rate.

    `maxima`: [m], the highest similarity of each null caption over its seeds and all images.
    Raises AuditError if m < 1/rate - 1: no such value exists.
    """
    m = len(maxima)
    rank = math.ceil((m + 1) * (1 - rate) - 1e-9)  # 100 * 0.99 must not become 100
    if rank > m or m == 0:
        raise AuditError(
            f"{m} null captions cannot set a threshold at a null rate of {rate:g}",
            where="confirm.null_captions",
            do=f"Give at least {nulls_needed(rate)} null captions, or raise confirm.null_rate.",
        )
    return float(np.sort(maxima)[rank - 1])


def null_maxima(matches: pa.Table, embedder: str, column: str) -> np.ndarray:
    """Per null caption, the maximum of `column` (similarity or region_similarity) over seeds and ranks: [m].

    A null caption whose generations have no comparable region counts with -1: it too was tried.
    """
    mine = matches.filter((pc.field("purpose") == "null") & (pc.field("embedder") == embedder))
    best = mine.group_by("caption_id").aggregate([(column, "max")]).column(f"{column}_max")
    return pc.fill_null(best, -1.0).to_numpy()


def choose_threshold(kind: str, maxima: np.ndarray, rate: float, floor: float | None = None) -> Threshold:
    """The threshold of `kind` (verbatim | region): the null's, but never below a configured floor.

    Without any null captions (m = 0): the floor, or else the published constant.
    """
    if len(maxima) == 0:
        return Threshold(floor, "configured") if floor is not None else Threshold(PUBLISHED[kind], "published")
    value = threshold_from_null(maxima, rate)
    if floor is not None and floor > value:
        return Threshold(floor, "configured", len(maxima))
    return Threshold(value, "null", len(maxima))


def judge(
    *,
    captions: pa.Table,
    scores: pa.Table,
    controls: pa.Table,
    generations: pa.Table,
    matches: pa.Table,
    rows: pa.Table,
    embedder: str,
    thresholds: Mapping[str, Threshold],
    images: Images,
    failures: pa.Table,
    max_unreadable: float = 0.01,
) -> pa.Table:
    """One verdict a caption (schema VERDICTS), in the order of `captions`.

    Tables as in audit.schema (of `generations` and `rows` only the columns used: no pixels are needed);
    `embedder` decides, by `thresholds["verbatim"]` and `thresholds["region"]`; `failures`: (caption_id, error),
    what failed outside `generations`: the errors of `screen` and the rows of `errors` that name a caption.
    """
    ids = captions["caption_id"].combine_chunks()
    score = _lookup(ids, scores)
    mine = matches.filter(pc.field("embedder") == embedder).drop_columns("embedder")
    found = _lookup(ids, _discovered(generations, mine))
    selected = _true(pc.is_valid(score["selected_by"]))

    whole = _at_least(found["similarity"], thresholds["verbatim"])
    region = _at_least(found["region_similarity"], thresholds["region"]) & ~whole
    own = rows.select(["caption_id", "image_id"]).filter(pc.field("caption_id").isin(ids.filter(pa.array(selected))))
    verdict = np.select(
        [whole, region, selected & ~_positive(found["finished"])],
        ["verbatim", "partial", "error"],
        np.where(selected, "unconfirmed", np.where(_true(pc.is_null(score["score"])), "error", "clear")),
    ).astype(object)
    negative = verdict == "unconfirmed"
    verdict[negative & (images.listed == 0)] = "unknown"
    verdict[negative & (images.listed > 0) & ~_positive(found["looked_up"])] = "error"
    verdict[(verdict == "unconfirmed") & _blind(ids, own, images, max_unreadable)] = "unknown"

    pairs = _matched_pairs(mine, ids.filter(pa.array(whole)), ids.filter(pa.array(region)), thresholds)
    k, n = _reproduced(ids, generations, mine, region, whole | region, thresholds)
    columns = {
        "caption_id": ids,
        "caption": captions["caption"],
        "copies": captions["copies"],
        "verdict": pa.array(verdict, pa.string()),
        "score": score["score"],
        "self_control": _lookup(ids, controls)["self_control"],
        "p_unseen": score["p_unseen"],
        "p_not_reproduced": _p_not_reproduced(score["score"], score["selected_by"], verdict),
        "reproduced_k": k,
        "reproduced_n": n,
        "image_id": pc.if_else(pa.array(region), found["region_image_id"], found["image_id"]),
        "matched_own_image": _matched_own(ids, own, pairs),
        "similarity": found["similarity"],
        "region_similarity": found["region_similarity"],
        "family": _families(ids, pairs),
        "image_cluster_size": score["image_cluster_size"],
        "error": _messages(ids, found["error"], failures, verdict),
    }
    parts = zip(verdict, captions["copies"].to_pylist(), k.to_pylist(), n.to_pylist(), strict=True)
    columns["risk"] = pa.array([risk(*part) for part in parts], pa.string())
    return pa.table({name: columns[name] for name in VERDICTS.names}, schema=VERDICTS)


def _lookup(ids: pa.Array, table: pa.Table) -> pa.Table:
    """The row of `table` (unique by caption_id) for each id; nulls where it has none."""
    return table.take(pc.index_in(ids, value_set=table["caption_id"]))


def _true(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False)).astype(bool)


def _positive(counts: pa.ChunkedArray) -> np.ndarray:
    return _true(pc.greater(counts, 0))


def _at_least(values: pa.ChunkedArray, threshold: Threshold) -> np.ndarray:
    return _true(pc.greater_equal(values, threshold.value))


def _runs(generations: pa.Table, mine: pa.Table, purpose: str) -> pa.Table:
    """One row a generation of that purpose, with its best similarities; null ones were not looked up."""
    keys = ["caption_id", "seed"]
    best = mine.filter(pc.field("purpose") == purpose).group_by(keys)
    best = best.aggregate([("similarity", "max"), ("region_similarity", "max")])
    best = best.rename_columns([name.removesuffix("_max") for name in best.column_names])
    runs = generations.filter(pc.field("purpose") == purpose).select([*keys, "status", "error"])
    runs = runs.append_column("finished", pc.cast(pc.equal(runs["status"], "ok"), pa.int64()))
    return runs.join(best, keys, join_type="left outer")


def _discovered(generations: pa.Table, mine: pa.Table) -> pa.Table:
    """Per caption with discover generations: how many finished, how many were looked up, and the best match."""
    runs = _runs(generations, mine, "discover").sort_by([("caption_id", "ascending"), ("seed", "ascending")])
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
    for column, name in (("similarity", "image_id"), ("region_similarity", "region_image_id")):
        discover = mine.filter((pc.field("purpose") == "discover") & pc.field(column).is_valid())
        best = discover.sort_by([(column, "descending"), ("image_id", "ascending")])
        best = best.group_by("caption_id", use_threads=False).aggregate([("image_id", "first")])
        summary = summary.append_column(name, _lookup(summary["caption_id"], best)["image_id_first"])
    return summary


def _blind(ids: pa.Array, own: pa.Table, images: Images, max_unreadable: float) -> np.ndarray:
    """Captions for which no match proves nothing: [N] bool (design, 2: `unknown`)."""
    own = own.filter(pc.field("image_id").is_valid())
    unread = own.filter(pc.field("image_id").isin(images.unreadable_ids))["caption_id"]
    blind = _true(pc.is_in(ids, value_set=unread))
    if images.listed and images.unreadable / images.listed > max_unreadable:
        blind |= ~_true(pc.is_in(ids, value_set=own["caption_id"]))
    return blind


def _matched_pairs(
    mine: pa.Table, verbatim: pa.Array, partial: pa.Array, thresholds: Mapping[str, Threshold]
) -> pa.Table:
    """Which training images each confirmed caption copied: distinct (caption_id, image_id)."""
    whole = pc.field("caption_id").isin(verbatim) & (pc.field("similarity") >= thresholds["verbatim"].value)
    region = pc.field("caption_id").isin(partial) & (pc.field("region_similarity") >= thresholds["region"].value)
    copied = mine.filter((pc.field("purpose") == "discover") & (whole | region))
    return copied.group_by(["caption_id", "image_id"]).aggregate([])


def _reproduced(
    ids: pa.Array,
    generations: pa.Table,
    mine: pa.Table,
    partial: np.ndarray,
    confirmed: np.ndarray,
    thresholds: Mapping[str, Threshold],
) -> tuple[pa.Array, pa.Array]:
    """How many fresh generations of each confirmed caption are copies again, of those that were looked up.

    Of a `partial` caption one copied region is enough.
    """
    runs = _runs(generations, mine, "fresh").filter(pc.field("similarity").is_valid())
    whole = _at_least(runs["similarity"], thresholds["verbatim"])
    region = _at_least(runs["region_similarity"], thresholds["region"])
    by_region = _true(pc.is_in(runs["caption_id"], value_set=ids.filter(pa.array(partial))))
    runs = runs.append_column("copy", pa.array((whole | (by_region & region)).astype(np.int64)))
    counts = _lookup(ids, runs.group_by("caption_id").aggregate([("copy", "sum"), ("copy", "count")]))
    null = pa.scalar(None, pa.int64())
    k, n = (pc.if_else(pa.array(confirmed), counts[name], null) for name in ("copy_sum", "copy_count"))
    return k.combine_chunks(), n.combine_chunks()


def _p_not_reproduced(score: pa.ChunkedArray, selected_by: pa.ChunkedArray, verdict: np.ndarray) -> pa.Array:
    """Conformal p-values against the audit sample's captions that do not reproduce (Jin and Candes, arXiv 2210.01408).

    A small one: scored unlike a caption that does not reproduce. Null without a sample, or without a score.
    """
    score_N = score.to_numpy().astype(float)
    null = _true(pc.match_substring(selected_by, "sample")) & (verdict == "unconfirmed") & ~np.isnan(score_N)
    if not null.any():
        return pa.nulls(len(score_N), pa.float64())
    m = int(null.sum())
    p = conformal_p(score_N[null], score_N)
    p[null] = (p[null] * (m + 1) - 1) / m  # against the others: its own score was counted twice
    return pa.array(p, mask=np.isnan(score_N))


def _matched_own(ids: pa.Array, own: pa.Table, pairs: pa.Table) -> pa.ChunkedArray:
    """Whether a confirmed caption copied an image of its own; null if not confirmed or if it has none."""
    own = own.filter(pc.field("image_id").is_valid())
    both = own.join(pairs, ["caption_id", "image_id"], join_type="inner")
    known = pc.and_(
        pc.is_in(ids, value_set=pairs["caption_id"]),
        pc.is_in(ids, value_set=own["caption_id"]),
    )
    return pc.if_else(known, pc.is_in(ids, value_set=both["caption_id"]), pa.scalar(None, pa.bool_()))


def _families(ids: pa.Array, pairs: pa.Table) -> pa.ChunkedArray:
    """Per confirmed caption, the smallest caption_id that it is connected with through shared training images."""
    pairs = pairs.sort_by("caption_id")
    caption, image = (pairs[name].combine_chunks().dictionary_encode() for name in ("caption_id", "image_id"))
    n, total = len(caption.dictionary), len(caption.dictionary) + len(image.dictionary)
    edges = caption.indices.to_numpy(), image.indices.to_numpy() + n
    graph = coo_array((np.ones(len(pairs), dtype=bool), edges), shape=(total, total))
    _, component = connected_components(graph, directed=False)
    # Captions are sorted, so the first of a component is its smallest.
    _, first, inverse = np.unique(component[:n], return_index=True, return_inverse=True)
    family = caption.dictionary.take(pa.array(first[inverse]))
    return _lookup(ids, pa.table({"caption_id": caption.dictionary, "family": family}))["family"]


def _messages(
    ids: pa.Array, generation_errors: pa.ChunkedArray, failures: pa.Table, verdict: np.ndarray
) -> pa.ChunkedArray:
    """Why something failed; a caption can have a verdict and still tell of a seed that failed."""
    first = failures.filter(pc.field("error").is_valid()).group_by("caption_id", use_threads=False)
    other = _lookup(ids, first.aggregate([("error", "first")]))["error_first"]
    unnamed = pc.if_else(pa.array(verdict == "error"), "no result was written", pa.scalar(None, pa.string()))
    return pc.coalesce(generation_errors, other, unnamed)
