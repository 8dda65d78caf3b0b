"""Read the verdicts of a run and the evidence for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.engine.manifest import read
from reports.purged import kept, note

IS_CONFIRMED = pc.field("verdict").isin(schema.CONFIRMED_WORDS)


def confirmed(ledger: Ledger, columns: list[str]) -> pa.Table:
    """Read columns of the captions whose verdict is verbatim or partial. Raises AuditError if a part is damaged."""
    ledger.check("verdicts")
    return ledger.dataset("verdicts", schema.VERDICTS).to_table(columns, IS_CONFIRMED)


def count_verdicts(ledger: Ledger) -> dict[str, int]:
    """Return how many captions have each verdict. Raises AuditError if a part is damaged."""
    ledger.check("verdicts")
    verdicts = ledger.dataset("verdicts", schema.VERDICTS).to_table(["verdict"])["verdict"]
    return Counter(verdicts.to_pylist())


def evidence_of(ledger: Ledger, image_ids: Sequence[str]) -> dict[str, bytes]:
    """Map image ids to the training images in the table `evidence` (PNG). Raises AuditError if one is missing."""
    found: dict[str, bytes] = {}
    for _, part in ledger.each("evidence", ["image_id", "image"]):
        part = part.filter(pc.field("image_id").isin(image_ids) & pc.field("image").is_valid())
        found |= dict(zip(part["image_id"].to_pylist(), part["image"].to_pylist(), strict=True))
    missing = sorted(set(image_ids) - found.keys())
    if missing:
        manifest = read(ledger.uri)
        if kept(manifest) == "none":
            hint = "Run the audit again with another --out to recreate them from the model and the dataset."
            raise AuditError(
                f"no training image is left to compare with: {note(manifest)}", where=ledger.uri, hint=hint
            )
        raise AuditError(
            f"{len(missing):,} images of confirmed captions are missing from the table evidence, such as {missing[0]}",
            where=ledger.uri,
            hint="Delete the table, then rerun `crossaudit run` with the run's audit.yaml to read them again.",
        )
    return found


def copies_of(ledger: Ledger, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Map caption ids to how the image of the verdict was copied (schema COPIED_IMAGES)."""
    image_of = {row["caption_id"]: row["image_id"] for row in rows}
    found = ledger.read("copied_images").filter(pc.field("caption_id").isin(list(image_of))).to_pylist()
    return {row["caption_id"]: row for row in found if row["image_id"] == image_of[row["caption_id"]]}
