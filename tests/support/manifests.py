"""Make the content of a manifest.json."""

from __future__ import annotations

from typing import Any


def manifest(**changes: Any) -> dict[str, Any]:
    """Return the manifest of a finished audit that read nothing. A change replaces a key."""
    content: dict[str, Any] = {
        "kind": "audit",
        "version": "0.1.0",
        "config": {},
        "resolved": {"captions": {"caption": "caption"}, "confirm": {"embedders": ["sscd"]}},
        "inputs": [],
        "models": {},
        "checkpoints": {},
        "packages": {},
        "seeds": {"screen": [0], "generate": [1], "fresh": [], "sample": 0, "captions": 0},
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "calibration": {},
        "thresholds": {},
        "claims": {},
        "stages": {},
        "accounting": {"input_rows": 0, "sampled_out": 0},
        "parts": {},
        "jobs": [],
        "progress": None,
        "failed": None,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T04:09:10+00:00",
    }
    return content | changes
