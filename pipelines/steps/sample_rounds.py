"""Sample captions outside the budget round by round, until a bound on them is reached (`select.until`).

The interval after every round is that of a confidence sequence. All of them hold together, so sampling may stop at any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.record.ledger import Ledger
from audit.statistics.bounds import Evidence, Tally, bounds
from audit.verdicts.confirm_error import looked_up
from audit.verdicts.copies import copied_images
from audit.verdicts.thresholds import Threshold
from pipelines.engine.context import Run
from pipelines.steps.generation import ROUND, generate

# Captions per round.
SIZE = 100
# Working table: the sampled captions in the order in which they were drawn.
DRAWN = "_drawn"


def in_drawn_order(ledger: Ledger, parts: Iterable[str], by_sample: np.ndarray) -> pa.Table:
    """Return (caption_id, caption) of the sampled captions.

    Args:
        ledger: The run.
        parts: The parts of `captions`.
        by_sample: The numbers of the sampled captions over all parts, in the order in which they were drawn.
    """
    found, start, order = [schema.CAPTIONS.empty_table().select(["caption_id", "caption"])], 0, np.sort(by_sample)
    for name in parts:
        captions = ledger.read("captions", name, ["caption_id", "caption"])
        here = order[(order >= start) & (order < start + len(captions))] - start
        found.append(captions.take(pa.array(here)))
        start += len(captions)
    return pa.concat_tables(found).take(pa.array(np.searchsorted(order, by_sample)))


def run(run: Run, limits: Mapping[str, Threshold], match: Callable[[Run, str, Sequence[str]], None]) -> None:
    """Generate and match the sample in rounds of SIZE captions until `select.until` is reached, and record the sample.

    Args:
        run: The run.
        limits: The thresholds of the deciding embedder, by kind.
        match: Matches the generations of a round.
    """
    ledger, config, selection = run.ledger, run.config, run.manifest.data.selection
    assert config.select.until is not None
    assert selection is not None
    drawn, census, sample = ledger.read(DRAWN, "00000"), Tally(selection.budget, 0, 0), Tally(0, 0, 0)
    while sample.captions < len(drawn):
        name, captions = f"{ROUND}{sample.captions // SIZE:06d}", drawn.slice(sample.captions, SIZE)
        generate(run, "confirm: sample", {name: captions}, config.generate.seeds)
        match(run, "confirm: sample", (name,))
        sample = sample + _tally(run, captions["caption_id"], limits)
        evidence = Evidence(selection.captions, census, sample, until=config.select.until.share)
        rest, limit = evidence.rest, config.select.until.share * evidence.rest
        found = bounds(evidence)
        if found.missed_high <= limit or found.flagged_low > limit:
            break
        run.progress.note(f"{sample.captions:,} sampled: at most {found.missed_high:,} of the other {rest:,} captions")
    _keep(run, sample.captions, drawn.slice(sample.captions)["caption_id"].combine_chunks())


def _tally(run: Run, ids: pa.ChunkedArray, limits: Mapping[str, Threshold]) -> Tally:
    """Count the captions of a round that are flagged, and those of which a generation was not looked up."""
    embedder, seeds = run.config.confirm.embedders[0], run.config.generate.seeds
    mine = pc.field("caption_id").isin(ids.combine_chunks()) & (pc.field("embedder") == embedder)
    matches = run.ledger.dataset("matches", schema.MATCHES).to_table(filter=mine)
    flagged = set(copied_images(matches, embedder, limits)["caption_id"].to_pylist())
    complete = looked_up(matches, "discover", len(seeds))
    return Tally(len(ids), len(flagged), len(ids) - len(flagged | complete))


def _keep(run: Run, taken: int, left: pa.Array) -> None:
    """Keep the first `taken` captions of the draw as the sample, and remove the others, `left`, from it in `scores`."""
    selection = run.manifest.data.selection
    assert selection is not None
    selection.audit_sample = taken
    for name in run.ledger.parts("scores") if len(left) else []:
        scores = run.ledger.read("scores", name)
        removed = pc.is_in(scores["caption_id"], value_set=left)
        in_budget = pc.fill_null(pc.equal(scores["selected_by"], "budget"), False)
        columns = {column: scores[column] for column in scores.column_names} | {
            "selected_by": pc.if_else(removed, pa.scalar(None, pa.string()), scores["selected_by"]),
            "inclusion_probability": pc.if_else(in_budget, 1.0, taken / (selection.captions - selection.budget)),
        }
        run.ledger.write("scores", name, pa.table(columns, schema=schema.SCORES))
