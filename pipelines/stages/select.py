"""Select: which captions are generated: the highest scores, and a random sample of all that says what those miss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.statistics import q_values
from pipelines.context import Run
from pipelines.ledger import Ledger
from pipelines.stages import calibrate

if TYPE_CHECKING:
    from audit.calibration import Calibration


def run(run: Run) -> None:
    config, data = run.config.select, run.manifest.data
    with run.manifest.stage("select") as stage:
        parts = run.ledger.parts("captions")
        scores = _scores(run.ledger, parts, calibrate.load(run.ledger))
        total = len(scores)
        budget = config.budget if config.budget is not None else max(1000, -(-total // 1000))
        sampled = min(config.audit_sample, total)
        in_budget = _highest(scores, budget)
        in_sample = np.zeros(total, bool)
        in_sample[np.random.default_rng(config.seed).choice(total, sampled, replace=False)] = True
        words = np.select([in_budget & in_sample, in_budget, in_sample], ["budget+sample", "budget", "sample"], "")
        q, reason = _q_values(scores["p_unseen"].to_numpy(), data["calibration"]["held_out"])
        data["calibration"]["q_unseen"] = reason
        data["selection"] = {"budget": int(in_budget.sum()), "audit_sample": sampled, "captions": total}
        table = pa.table(
            {
                "caption_id": scores["caption_id"],
                "score": scores["score"],
                "p_unseen": scores["p_unseen"],
                "q_unseen": q,
                "selected_by": pa.array(words, pa.string(), mask=words == ""),
                "inclusion_probability": pa.repeat(sampled / total, total),
                "image_cluster_size": pa.nulls(total, pa.int64()),
            },
            schema=schema.SCORES,
        )
        start = 0
        for name in parts:
            rows = run.ledger.rows("captions", name)
            run.ledger.write("scores", name, table.slice(start, rows))
            run.manifest.part("scores", name, rows)
            start += rows
        stage |= {"rows_in": total, "rows_out": int((in_budget | in_sample).sum())}
        run.progress.say(f"select: {in_budget.sum():,} by score, {sampled:,} at random, of {total:,} captions")


def selected(ledger: Ledger) -> pa.Table:
    """(caption_id, caption) of the selected captions, in order."""
    found = [schema.CAPTIONS.empty_table().select(["caption_id", "caption"])]
    for name, scores in ledger.each("scores", ["selected_by"]):
        captions = ledger.read("captions", name, ["caption_id", "caption"])
        found.append(captions.filter(pc.is_valid(scores["selected_by"])))
    return pa.concat_tables(found)


def _scores(ledger: Ledger, parts: list[str], calibration: Calibration) -> pa.Table:
    """caption_id, score, p_unseen of every caption, in the order of `captions`; null where the screen failed."""
    ids = pa.concat_tables([ledger.read("captions", name, ["caption_id"]) for name in parts])["caption_id"]
    found = pa.concat_tables([calibration.score(table) for _, table in ledger.each("screen")])
    at = pc.index_in(ids, value_set=found["caption_id"].combine_chunks())
    return pa.table({"caption_id": ids, "score": found["score"].take(at), "p_unseen": found["p_unseen"].take(at)})


def _highest(scores: pa.Table, budget: int) -> np.ndarray:
    """Which captions have the `budget` highest scores: [N] bool; ties go by caption_id, failures are none of them."""
    numbered = scores.append_column("at", pa.array(np.arange(len(scores)))).filter(pc.is_valid(scores["score"]))
    order = numbered.sort_by([("score", "descending"), ("caption_id", "ascending")])["at"].to_numpy()
    chosen = np.zeros(len(scores), bool)
    chosen[order[:budget]] = True
    return chosen


def _q_values(p: np.ndarray, held_out: int) -> tuple[pa.Array, str]:
    """(q-values or nulls, why): Benjamini-Hochberg, where the smallest p-value can reach 1/N at all."""
    tested = ~np.isnan(p)
    count = int(tested.sum())
    if held_out + 1 < count:
        need = f"{count:,} captions need as many null captions held out, there are {held_out:,}"
        return pa.nulls(len(p), pa.float64()), f"null: {need}; the screen ranks, it does not flag"
    q = np.full(len(p), np.nan)
    q[tested] = q_values(p[tested]) if count else []
    return pa.array(q, pa.float64(), mask=~tested), f"Benjamini-Hochberg over {count:,} captions"
