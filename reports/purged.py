"""Describe what `crossaudit purge` did to a run, for the report, `check` and error messages."""

from __future__ import annotations

from typing import Any


def note(manifest: dict[str, Any]) -> str | None:
    """Say when pictures were removed and which were kept. Returns None if none were removed."""
    purges = [f"on {purge['begun'][:10]} (crossaudit purge --keep {purge['keep']})" for purge in _purges(manifest)]
    return f"pictures were removed {' and '.join(purges)}" if purges else None


def kept(manifest: dict[str, Any]) -> str | None:
    """Return the strictest `keep` of all purges ("none" or "confirmed"), or None if there was no purge."""
    return min((purge["keep"] for purge in _purges(manifest)), key=("none", "confirmed").index, default=None)


def unfinished(manifest: dict[str, Any]) -> str | None:
    """Return the `keep` of a purge that was interrupted, or None."""
    return next((purge["keep"] for purge in _purges(manifest) if purge["finished"] is None), None)


def _purges(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manifest.get("purged", [])
    return found
