"""Describe what `crossaudit purge` did to a run, for the report, `check` and error messages."""

from __future__ import annotations

from typing import Literal

from audit.record.manifest import RunManifest

Keep = Literal["confirmed", "none"]


def note(manifest: RunManifest) -> str | None:
    """Say when pictures were removed and which were kept. Returns None if none were removed."""
    purges = [f"on {purge.begun[:10]} (crossaudit purge --keep {purge.keep})" for purge in manifest.purged]
    return f"pictures were removed {' and '.join(purges)}" if purges else None


def kept(manifest: RunManifest) -> Keep | None:
    """Return the strictest `keep` of all purges ("none" or "confirmed"), or None if there was no purge."""
    return min((purge.keep for purge in manifest.purged), key=("none", "confirmed").index, default=None)


def unfinished(manifest: RunManifest) -> Keep | None:
    """Return the `keep` of a purge that was interrupted, or None."""
    return next((purge.keep for purge in manifest.purged if purge.finished is None), None)
