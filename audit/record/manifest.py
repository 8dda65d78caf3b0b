"""Read manifest.json, which may be damaged or come from another program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from audit.errors import AuditError

_RUN = "Give the folder of a run: its `out`."


def missing(where: str) -> AuditError:
    """Return the error for a folder without a manifest."""
    return AuditError("no manifest.json: this is not a run", where=where, hint=_RUN)


def parse(content: bytes, where: str, keys: Sequence[str] = ("parts",)) -> dict[str, Any]:
    """Parse a manifest.

    Args:
        content: Bytes of the file.
        where: The file, for errors.
        keys: Keys that it must have.

    Raises:
        AuditError: The manifest is damaged, or lacks a key that every run's manifest has.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        hint = f"Is this the manifest of a run? {_RUN} If it is damaged, restore it or audit with another --out."
        raise AuditError(f"not JSON, or damaged: {error}", where=where, hint=hint) from error
    if not isinstance(data, dict):
        raise AuditError("not a JSON object: this is not a run's manifest", where=where, hint=_RUN)
    if lacking := [key for key in keys if key not in data]:
        what = f"this is not the manifest of a run of this version: it has no {', '.join(lacking)}"
        raise AuditError(what, where=where, hint=_RUN)
    return data
