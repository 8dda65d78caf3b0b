"""Gather the counts that the claims follow from, out of the tables of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.record.manifest_entries import ClaimsEntry
from audit.statistics.bounds import LEVELS
from audit.statistics.claims import VERDICT_COLUMNS, claims
from audit.statistics.intervals import upper_bound
from audit.verdicts.recall import Counted, count, recall_by_stratum
from pipelines.configuration.select import Select

_SELECTED = pa.schema([schema.SCORES.field(name) for name in ("caption_id", "selected_by")])


def state_claims(ledger: Ledger, manifest: RunManifest) -> ClaimsEntry:
    """Compute the claims of a run from its tables `captions`, `scores` and `verdicts`.

    Args:
        ledger: The run.
        manifest: Its manifest, of which `confirm_error`, the seeds and the configuration are used.
    """
    rest_row_counts: Counter[int] = Counter()
    in_strata: Counter[Counted] = Counter()
    verdicts, scores, total = [schema.VERDICTS.empty_table().select(VERDICT_COLUMNS)], [_SELECTED.empty_table()], 0
    # All tables have the same parts, with the same captions in the same order.
    for name, part in ledger.each("scores", _SELECTED.names):
        judged = ledger.read("verdicts", name, VERDICT_COLUMNS)
        chosen = pc.is_valid(part["selected_by"])
        verdicts.append(
            judged.filter(pc.is_in(judged["caption_id"], part["caption_id"].filter(chosen).combine_chunks()))
        )
        scores.append(part.filter(chosen))
        outside = pc.fill_null(pc.not_equal(part["selected_by"], "budget"), True)
        rest_row_counts.update(judged["row_count"].filter(outside).to_pylist())
        texts = ledger.read("captions", name, ["caption"])["caption"]
        columns = [texts, judged["row_count"], part["selected_by"], judged["verdict"]]
        in_strata.update(count(pa.table(columns, ["caption", "row_count", "selected_by", "verdict"])))
        total += len(part)
    controls = _controls(manifest)
    select = Select.model_validate(manifest.resolved["select"])
    stops: dict[str, Any] = {}
    if select.until is not None:
        stops = {"until": select.until.share, "sample_limit": select.audit_sample}
    sampled_rows = manifest.resolved["captions"]["sample"] is not None
    found = claims(
        pa.concat_tables(verdicts),
        pa.concat_tables(scores),
        total,
        rest_row_counts,
        controls=controls,
        fresh_seeds=len(manifest.seeds.fresh),
        seed_was_given=select.seed is not None,
        **stops,
        population="captions of a random sample of the rows" if sampled_rows else "captions of the dataset",
    )
    strata = [asdict(stratum) for stratum in recall_by_stratum(in_strata, controls, **stops)]
    return ClaimsEntry.model_validate(found | {"recall_by_stratum": strata})


def _controls(manifest: RunManifest) -> tuple[int, int] | None:
    """Return how many captions measured the confirm step's error, and how many of them it confirmed.

    There may be control captions and held-out pairs. Those with the higher upper bound count.
    """
    error, confidence = manifest.confirm_error, 1 - LEVELS["false_positive_rate"]
    measured = [] if error is None else [(error.controls, error.confirmed), (error.pairs, error.pairs_confirmed)]
    return max(
        (counts for counts in measured if counts[0]),
        key=lambda counts: upper_bound(counts[1], counts[0], confidence),
        default=None,
    )
