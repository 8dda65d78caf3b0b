"""Compare the control captions of a run with a random sample of the captions of the dataset."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.calibration.likeness import LIMIT, Likeness, compare
from audit.calibration.strata import false_positives
from audit.duplicates.captions import draws
from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables
from audit.record.manifest_entries import LikenessEntry, StratumEntry
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.tables.calibration import CONTROL_CAPTIONS

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Expected number of captions of the dataset, and of control captions, that are compared.
SAMPLE = 4000
SEED = 0
# Working table: the captions that are compared.
COMPARED = "_compared_captions"
_COMPARED = pa.schema(
    [
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("caption_group", pa.string()),
        ("truncated", pa.bool_()),
        ("is_control", pa.bool_()),
    ]
)


def run(run: Run) -> None:
    """Record in the manifest how alike control captions and dataset are.

    Raises:
        AuditError: The control captions are unlike the dataset, and `calibration.accept_unlike` is not set.
    """
    entry, accepted = run.manifest.data.calibration.likeness, run.config.calibration.accept_unlike
    if entry is None:
        entry = entry_of(compare(*_samples(run), SEED))
    entry.accepted = accepted and entry.unlike
    run.manifest.data.calibration.likeness = entry
    run.manifest.write()
    run.progress.note(describe(entry))
    if entry.unlike and not accepted:
        raise refusal(entry, run.config.calibration.captions)


def entry_of(found: Likeness) -> LikenessEntry:
    """Return the entry of the manifest; its figures are rounded."""
    known = asdict(found)
    for name in ("auc", "low", "high"):
        known[name] = None if known[name] is None else round(known[name], 6)
    return LikenessEntry.model_validate(known | {"limit": LIMIT})


def describe(entry: LikenessEntry) -> str:
    """Say in a few words how alike control captions and dataset are."""
    if entry.auc is None:
        return "too few control captions or captions to tell whether they are alike"
    word = "unlike the dataset" if entry.unlike else "like the dataset"
    return f"{word} (AUC {entry.auc:.3f}, 95 % interval {entry.low:.3f} to {entry.high:.3f})"


def refusal(entry: LikenessEntry, where: str) -> AuditError:
    """Return the error for control captions that are unlike the dataset."""
    what = f"the control captions are {describe(entry)}: a classifier that reads only the text tells them apart, "
    what += f"and the limit is {entry.limit:g}, so p-values against them would say little"
    for side, found in (("control captions", entry.of_controls), ("the dataset", entry.of_captions)):
        if found:
            what += f"; words that tell {side}: {', '.join(telltale.word for telltale in found)}"
    hint = "Give control captions of the same source and style (`crossaudit controls propose` writes some), or accept "
    hint += "them with --accept-unlike-controls; p-values and q-values are then withheld."
    return AuditError(what, where=where, hint=hint)


def strata(run: Run, scores: pa.Table) -> list[StratumEntry]:
    """Return the share of small p-values in each stratum of the control captions in `control_scores`."""
    controls, captions = _samples(run)
    truncated = dict(zip(controls["caption_id"].to_pylist(), controls["truncated"].to_pylist(), strict=True))
    found = false_positives(scores, run.ledger.read(CONTROL_CAPTIONS, "00000"), truncated, captions)
    return [StratumEntry.model_validate(asdict(stratum)) for stratum in found]


def _samples(run: Run) -> tuple[pa.Table, pa.Table]:
    """Return the control captions and the captions of the dataset to compare."""
    ledger = run.ledger
    counts = {name: ledger.rows("captions", name) for name in ledger.parts("captions")}
    shards = [
        Shard(f"data-{name}", ("captions", name, fraction), 0, 1)
        for fraction in [min(1.0, SAMPLE / max(1, sum(counts.values())))]
        for name in counts
    ]
    fraction = min(1.0, SAMPLE / max(1, ledger.rows(CONTROL_CAPTIONS, "00000")))
    shards.append(Shard("controls", (CONTROL_CAPTIONS, "00000", fraction), 0, 1))
    needs = run.config.scoring()
    run.execute(Step("controls: sample", COMPARED, "parts", ledger, _sample, needs=needs), shards)
    table = ledger.read(COMPARED)
    return table.filter(table["is_control"]), table.filter(pc.invert(table["is_control"]))


def _sample(worker: Worker, shard: Shard) -> Tables:
    """Return a random fraction of the captions of one part."""
    table, name, fraction = shard.source
    found = worker.ledger.read(table, name, ["caption_id", "caption"])
    drawn = pa.array(draws(found["caption_id"].to_pylist(), SEED) < fraction)
    found = found.filter(drawn)
    group = _groups(worker.ledger, table, name).filter(drawn)
    mask_NK = worker.model.tokenize(found["caption"].to_pylist()).mask_BK if len(found) else None
    truncated_N = np.zeros(0, bool) if mask_NK is None else mask_NK.all(1).numpy()
    is_control = pa.repeat(table == CONTROL_CAPTIONS, len(found))
    columns = [found["caption_id"], found["caption"], group, pa.array(truncated_N), is_control]
    return {COMPARED: pa.table(columns, schema=_COMPARED)}


def _groups(ledger: Ledger, table: str, name: str) -> pa.ChunkedArray:
    table = table if table == CONTROL_CAPTIONS else "caption_groups"  # it has the rows of `captions`
    return ledger.read(table, name, ["caption_group"])["caption_group"]
