"""Read the manifest of a run whose results are to be handed on or judged."""

from __future__ import annotations

from pathlib import Path

from audit.errors import AuditError
from audit.record.manifest import RunManifest
from reports.stored_run import locate


def finished_manifest(run: str | Path) -> RunManifest:
    """Return the manifest of a finished run. Raises AuditError if the run is not finished, or is an index."""
    manifest = locate(run).manifest()
    if manifest.kind == "index":
        raise AuditError("this is an index, not a run", where=str(run), hint="Pass the folder of a run: its `out`.")
    if manifest.finished is None:
        raise AuditError("the run is not finished", where=str(run), hint="Use `crossaudit run` to resume it.")
    return manifest
