"""Say where an export comes from."""

from __future__ import annotations

from reports.record.model import Record

# The sections of audit.yaml that say how the audit was done. They hold no paths.
METHOD = ("screen", "select", "generate", "confirm")


def provenance(record: Record) -> dict[str, str]:
    """Return what identifies a run in every export: the version of crossaudit, the run, and the UNet of the model."""
    return {
        "crossaudit": record.run.crossaudit or "unknown",
        "run_id": record.run.id,
        "model_sha256": record.provenance.models.get("model", {}).get("unet", "unknown"),
    }
