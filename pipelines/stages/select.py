"""Select: choose the captions to generate: the highest scores, and a random sample that shows what they miss.

Captions are processed part by part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, slices
from audit.record.manifest_entries import SelectionEntry
from audit.statistics.intervals import q_values
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps import audit_sample, caption_clusters, sample_rounds
from pipelines.tables.calibration import load_calibration
from pipelines.tables.selection import allowed

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# An image that occurs in this many rows may be memorized whatever the scores of its captions: most images extracted
# from Stable Diffusion had a hundred duplicates, and some had ten (arXiv 2301.13188).
DUPLICATED = 10
# Working tables with the same rows as `captions`: their scores, and the clusters of their images.
SCORED, OWNED = "_scored", "_owned"
_SCORED = pa.schema([("caption_id", pa.string()), ("score", pa.float64()), ("p_unseen", pa.float64())])
_RANKED = pa.schema([("number", pa.int64()), ("score", pa.float64()), ("cluster", pa.string())])


def run(run: Run) -> None:
    """Write `scores`, which says why each caption was selected, if it was."""
    config, data, ledger = run.config.select, run.manifest.data, run.ledger
    with run.stage("select", "captions") as stage:
        counts = {name: ledger.rows("captions", name) for name in ledger.parts("captions")}
        total = sum(counts.values())
        shards = [Shard(name, count, 0, 1) for name, count in counts.items()]
        run.execute(Step("select: scores", SCORED, "parts", ledger, _score), shards)
        for name, clusters in zip(counts, caption_clusters.each(ledger, list(counts)), strict=True):
            ledger.write(OWNED, name, clusters.drop_columns("caption_id"))
        q = _q_values(run)
        if config.budget.fdr is not None:
            if data.calibration.p_unseen:
                what = f"there are no q-values, so a false-discovery rate selects nothing: {data.calibration.p_unseen}"
                raise AuditError(what, where="select.budget", hint="Give a number of captions.")
            by_budget, by_rows = _below(q, config.budget.fdr), 0
        else:
            by_budget, by_rows = _budget(_scored(ledger, counts), allowed(config.budget, total))
        if data.seeds.sample is None:
            data.seeds.sample = data.seed_of_inputs
        by_sample = audit_sample.draw(by_budget, total, config.audit_sample, data.seeds.sample)
        data.selection = SelectionEntry(
            budget=len(by_budget), by_duplicates=by_rows, audit_sample=len(by_sample), captions=total
        )
        _write(run, counts, by_budget, by_sample, q)
        if config.until is not None:
            ledger.write(sample_rounds.DRAWN, "00000", sample_rounds.in_drawn_order(ledger, counts, by_sample))
        stage.rows_in, stage.rows_out = total, len(by_budget) + len(by_sample)
        chosen = {"by score": len(by_budget) - by_rows, "by duplicates": by_rows, "at random": len(by_sample)}
        how = ", ".join(f"{count:,} {way}" for way, count in chosen.items() if count)
        run.progress.note(f"{stage.rows_out:,} selected: {how}")


def _write(run: Run, parts: Mapping[str, int], by_budget: np.ndarray, by_sample: np.ndarray, q: pa.Array) -> None:
    """Write `scores`, with the same parts as `captions`. Selected captions are given by their number over all parts."""
    start, probability = 0, len(by_sample) / max(1, sum(parts.values()) - len(by_budget))
    for name, table in zip(parts, _scored(run.ledger, parts), strict=True):
        at = np.arange(start, start + len(table))
        in_budget, in_sample = np.isin(at, by_budget), np.isin(at, by_sample)
        columns = {
            "caption_id": table["caption_id"],
            "score": table["score"],
            "p_unseen": table["p_unseen"],
            "q_unseen": q.slice(start, len(table)),
            "selected_by": _words(in_budget, in_sample),
            "inclusion_probability": pa.array(np.where(in_budget, 1.0, probability)),
            "image_cluster_size": table["cluster_size"],
        }
        run.ledger.write("scores", name, pa.table(columns, schema=schema.SCORES))
        run.manifest.part("scores", name, len(table))
        start += len(table)


def _score(worker: Worker, shard: Shard) -> Tables:
    """Return caption_id, score and p_unseen of the captions of a part in order; null where the screen failed."""
    ledger, calibration = worker.ledger, load_calibration(worker.ledger)
    ids = ledger.read("captions", shard.name, ["caption_id"])["caption_id"]
    parts = slices(shard.name, None, shard.source, worker.config.engine.shard_rows)
    scores = (calibration.score(ledger.read("screen", part.name)) for part in parts)
    found = pa.concat_tables([_SCORED.empty_table(), *scores])
    at = pc.index_in(ids, value_set=found["caption_id"].combine_chunks())
    return {SCORED: pa.table([ids, found["score"].take(at), found["p_unseen"].take(at)], schema=_SCORED)}


def _scored(ledger: Ledger, parts: Iterable[str]) -> Iterator[pa.Table]:
    """Yield the captions of each part with their scores and the clusters of their images."""
    for name in parts:
        scores, clusters = ledger.read(SCORED, name), ledger.read(OWNED, name)
        yield pa.table({column: each[column] for each in (scores, clusters) for column in each.column_names})


def _budget(parts: Iterable[pa.Table], budget: int) -> tuple[np.ndarray, int]:
    """Return the numbers of the captions in the budget, and how many of them are chosen by duplicates, not by score.

    Half of the budget goes to the highest scores. Then come captions whose images, near duplicates included, occur in
    DUPLICATED rows or more: first the highest-scoring caption of every cluster, then the second of every cluster, and
    so on. The rest of the budget goes to the next highest scores. Ties are broken by caption_id. Captions without a
    score are never in the budget.
    """
    best, copied, start = _RANKED.empty_table(), _RANKED.empty_table(), 0
    for part in parts:
        part = part.append_column("number", pa.array(start + np.arange(len(part))))
        start += len(part)
        scored = part.filter(pc.is_valid(part["score"]))
        several = scored.filter(pc.field("rows") >= DUPLICATED)
        # A caption that is already beyond the budget can only move further back.
        best = _highest(pa.concat_tables([best, scored.select(_RANKED.names)])).slice(0, budget)
        copied = _in_turn(pa.concat_tables([copied, several.select(_RANKED.names)])).slice(0, budget)
    by_score, by_rows = best["number"].to_numpy(), copied["number"].to_numpy()
    ranked = np.concatenate([by_score[: budget - budget // 2], by_rows, by_score])
    _, first = np.unique(ranked, return_index=True)
    taken = np.sort(ranked[np.sort(first)][:budget])
    return taken, len(np.setdiff1d(taken, by_score[:budget]))


def _highest(ranked: pa.Table) -> pa.Table:
    return ranked.sort_by([("score", "descending"), ("number", "ascending")])


def _in_turn(ranked: pa.Table) -> pa.Table:
    """Sort captions so that the highest of every cluster comes first, then the second of every cluster, and so on."""
    ranked = _highest(ranked)
    cluster_N = ranked["cluster"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(cluster_N, kind="stable")
    place_N = np.empty(len(order), np.int64)
    place_N[order] = np.arange(len(order)) - np.searchsorted(cluster_N[order], cluster_N[order])
    return ranked.take(pa.array(np.argsort(place_N, kind="stable")))


def _words(in_budget: np.ndarray, in_sample: np.ndarray) -> pa.Array:
    words = np.select([in_budget, in_sample], ["budget", "sample"], "")
    return pa.array(words, pa.string(), mask=words == "")


def _q_values(run: Run) -> pa.Array:
    """Return Benjamini-Hochberg q-values of all captions, and record how small they can be.

    Conformal p-values that share control captions are positively dependent, so the false-discovery rate is at most q
    however few the control captions are (Bates et al., 2023, theorem 2).
    """
    p_N = run.ledger.read(SCORED, columns=["p_unseen"])["p_unseen"].to_numpy()
    tested_N, q_N = ~np.isnan(p_N), np.full(len(p_N), np.nan)
    entry, count = run.manifest.data.calibration, int(tested_N.sum())
    if entry.p_unseen:
        entry.q_unseen = entry.p_unseen
        return pa.array(q_N, pa.float64(), mask=~tested_N)
    if count:
        q_N[tested_N] = q_values(p_N[tested_N])
        entry.smallest_q = float(np.nanmin(q_N))
    entry.q_unseen = (
        f"Benjamini-Hochberg over {count:,} captions; with {entry.held_out:,} held-out control captions, q "
    )
    entry.q_unseen += f"is at least {count / (entry.held_out + 1):,.3g} divided by the number of captions selected"
    return pa.array(q_N, pa.float64(), mask=~tested_N)


def _below(q: pa.Array, fdr: float) -> np.ndarray:
    """Return the numbers of the captions whose q-value is at most `fdr`."""
    return np.flatnonzero(np.asarray(pc.fill_null(pc.less_equal(q, fdr), False)))
