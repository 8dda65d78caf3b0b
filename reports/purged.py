"""What `crossaudit purge` did to a run, in the words of the report, of `check` and of errors."""

from __future__ import annotations

from typing import Any


def note(manifest: dict[str, Any]) -> str | None:
    """When pictures were removed, and which were kept; None where none were."""
    purges = [f"on {purge['begun'][:10]} (crossaudit purge --keep {purge['keep']})" for purge in _purges(manifest)]
    return f"pictures were removed {' and '.join(purges)}" if purges else None


def kept(manifest: dict[str, Any]) -> str | None:
    """The strictest `keep` of all purges: none, confirmed, or None where there was no purge."""
    return min((purge["keep"] for purge in _purges(manifest)), key=("none", "confirmed").index, default=None)


def unfinished(manifest: dict[str, Any]) -> str | None:
    """The `keep` of a purge that was interrupted; None if none was."""
    return next((purge["keep"] for purge in _purges(manifest) if purge["finished"] is None), None)


def _purges(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manifest.get("purged", [])
    return found
