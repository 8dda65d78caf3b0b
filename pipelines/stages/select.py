"""Select: which captions are generated: the highest scores, and a random sample of all that says what those miss."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.statistics import q_values
from pipelines.context import Run
from pipelines.ledger import Ledger
from pipelines.stages import calibrate, cluster

if TYPE_CHECKING:
    from audit.calibration import Calibration
    from pipelines.config import Select

# An image that so many rows of the data set have may be memorized whatever its captions say: most of what was
# extracted from Stable Diffusion had a hundred duplicates, some of it ten (arXiv 2301.13188).
DUPLICATED = 10


def run(run: Run) -> None:
    config, data = run.config.select, run.manifest.data
    with run.manifest.stage("select") as stage:
        parts = run.ledger.parts("captions")
        scores = _scores(run.ledger, parts, calibrate.load(run.ledger))
        total = len(scores)
        budget = allowed(config, total)
        sampled = min(config.audit_sample, total)
        own = cluster.own(run.ledger)
        at = pc.index_in(scores["caption_id"], value_set=own["caption_id"].combine_chunks())
        for name in ("cluster", "rows", "size"):
            scores = scores.append_column(name, own[name].take(at))
        in_budget, by_rows = _budget(scores, budget)
        in_sample = np.zeros(total, bool)
        in_sample[np.random.default_rng(config.seed).choice(total, sampled, replace=False)] = True
        words = np.select([in_budget & in_sample, in_budget, in_sample], ["budget+sample", "budget", "sample"], "")
        q, reason = _q_values(scores["p_unseen"].to_numpy(), data["calibration"]["held_out"])
        data["calibration"]["q_unseen"] = reason
        data["selection"] = {
            "budget": int(in_budget.sum()),
            "by_duplicates": by_rows,
            "audit_sample": sampled,
            "captions": total,
        }
        table = pa.table(
            {
                "caption_id": scores["caption_id"],
                "score": scores["score"],
                "p_unseen": scores["p_unseen"],
                "q_unseen": q,
                "selected_by": pa.array(words, pa.string(), mask=words == ""),
                "inclusion_probability": pa.repeat(sampled / total, total),
                "image_cluster_size": scores["size"],
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
        how = f"{in_budget.sum() - by_rows:,} by score, {by_rows:,} by duplicates, {sampled:,} at random"
        run.progress.say(f"select: {how}, of {total:,} captions")


def allowed(config: Select, captions: int) -> int:
    """The budget, of so many captions."""
    return config.budget if config.budget is not None else max(1000, -(-captions // 1000))


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


def _budget(scores: pa.Table, budget: int) -> tuple[np.ndarray, int]:
    """(which captions are in the budget [N] bool, how many of them by duplicates and not by score).

    Half of it goes by score. Then come captions of images that DUPLICATED or more rows have, near duplicates included:
    from every cluster the one of highest score, then from every cluster the second. What they leave goes by score:
    without duplicates all does. Ties go by caption_id; a caption without a score is in no budget.
    """
    numbered = scores.append_column("at", pa.array(np.arange(len(scores)))).filter(pc.is_valid(scores["score"]))
    numbered = numbered.sort_by([("score", "descending"), ("caption_id", "ascending")])
    by_score = numbered["at"].to_numpy()
    copied = numbered.filter(pc.field("rows") >= DUPLICATED)
    seen: Counter[str] = Counter()
    places = []
    for name in copied["cluster"].to_pylist():
        places.append(seen[name])
        seen[name] += 1
    by_rows = copied["at"].to_numpy()[np.argsort(np.array(places, np.int64), kind="stable")]
    ranked = np.concatenate([by_score[: budget - budget // 2], by_rows, by_score])
    _, first = np.unique(ranked, return_index=True)
    taken = ranked[np.sort(first)][:budget]
    chosen = np.zeros(len(scores), bool)
    chosen[taken] = True
    return chosen, len(np.setdiff1d(taken, by_score[:budget]))


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
