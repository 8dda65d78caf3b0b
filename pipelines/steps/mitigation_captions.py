"""Choose the captions that mitigation is measured on: confirmed ones, and ordinary ones that were not selected."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError
from pipelines.engine.context import Run
from pipelines.reading.sampling import Sample
from pipelines.tables import embeddings, verdicts

if TYPE_CHECKING:
    from audit.mitigation.serving import Setting

# Number of captions per caption set for which one image of each setting is kept for the report.
# The seed of the draws of captions.
SEED = 0
PICTURED = {"confirmed": 12, "ordinary": 6}

CAPTIONS = pa.schema(
    [
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("verdict", pa.string()),
        ("image_id", pa.string()),
        ("reference", pa.binary()),  # the training image of that id, PNG
        ("region", pa.binary()),  # for `partial`: where it was copied, PNG
        ("shown_seed", pa.int64()),  # the seed whose images are kept; null: none are
    ]
)


@dataclass(frozen=True)
class MitigationPlan:
    """List the settings to measure (with PLAIN), the maximum number of captions of each set, and the seeds."""

    settings: Sequence[Setting]
    confirmed: int
    ordinary: int
    seeds: Sequence[int]


def confirmed_captions(run: Run, plan: MitigationPlan) -> pa.Table:
    """Return the confirmed captions to generate (schema CAPTIONS)."""
    found = verdicts.confirmed(run.ledger, ["caption_id", "caption", "verdict", "image_id", "family"])
    if not len(found):
        raise AuditError("this run has no confirmed captions, so there is nothing to mitigate", where=run.ledger.uri)
    embedder = run.config.confirm.embedders[0]
    if not run.ledger.parts(embeddings.table(embedder)):
        hint = "Recreate it: `crossaudit run` with the run's audit.yaml."
        raise AuditError(f"the table {embeddings.table(embedder)} is missing", where=run.ledger.uri, hint=hint)
    rows = _drawn(found, plan.confirmed, SEED).to_pylist()
    images = verdicts.evidence_of(run.ledger, [row["image_id"] for row in rows])
    shown = _one_per_family(rows, PICTURED["confirmed"])
    copied = verdicts.copies_of(run.ledger, rows)
    more = []
    for row in rows:
        copy = copied[row["caption_id"]]
        seed = copy["seed"] if copy["seed"] in plan.seeds else plan.seeds[0]
        more.append(
            {
                "reference": images[row["image_id"]],
                "region": copy["region"] if row["verdict"] == "partial" else None,
                "shown_seed": seed if row["caption_id"] in shown else None,
            }
        )
    return pa.Table.from_pylist([row | extra for row, extra in zip(rows, more, strict=True)], schema=CAPTIONS)


def ordinary_captions(run: Run, plan: MitigationPlan) -> pa.Table:
    """Return captions of the run that were not selected (schema CAPTIONS)."""
    columns, clear = ["caption_id", "caption", "verdict"], pc.field("verdict") == "not_selected"
    total = run.ledger.dataset("verdicts", schema.VERDICTS).count_rows(filter=clear)
    sample = Sample(min(plan.ordinary, total), total, SEED)
    rows, start = [], 0
    for _, part in run.ledger.each("verdicts", columns):
        part = part.filter(clear)
        rows += part.take(pa.array(sample.within(start, start + len(part)) - start)).to_pylist()
        start += len(part)
    for number, row in enumerate(rows):
        row["shown_seed"] = plan.seeds[0] if number < PICTURED["ordinary"] else None
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


def digest(captions_of: Mapping[str, pa.Table]) -> str:
    """Return a sha256 of the captions of all sets, with their training images and regions."""
    found = hashlib.sha256()
    for caption_set, captions in captions_of.items():
        for row in captions.to_pylist():
            found.update(repr((caption_set, *row.values())).encode())
    return found.hexdigest()


def _drawn(captions: pa.Table, most: int, seed: int) -> pa.Table:
    """Draw at most `most` captions at random. A smaller draw is a subset of a larger one."""
    order = np.random.default_rng(seed).permutation(len(captions))[:most]
    return captions.sort_by("caption_id").take(pa.array(order))


def _one_per_family(rows: Sequence[dict[str, Any]], most: int) -> set[str]:
    """Return the captions to show: the first of each family, then others."""
    first = {row["family"] or row["caption_id"]: row["caption_id"] for row in reversed(rows)}
    order = sorted(rows, key=lambda row: row["caption_id"] not in first.values())
    return {row["caption_id"] for row in order[:most]}
