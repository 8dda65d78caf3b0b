"""Say where an export comes from."""

from __future__ import annotations

from audit.record.manifest import denoiser_sha256
from reports.record.model import Record

# The sections of audit.yaml that say how the audit was done. They hold no paths.
METHOD = ("screen", "select", "generate", "confirm")


def provenance(record: Record) -> dict[str, str]:
    """Return what identifies a run in every export: the version of crossaudit, the run, and the network."""
    return {
        "crossaudit": record.run.crossaudit or "unknown",
        "run_id": record.run.id,
        "model_sha256": denoiser_sha256(record.provenance.models.get("model", {})),
    }
