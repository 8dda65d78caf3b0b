"""What the manifest of the small finished run says (`tests.support.report_run`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SEEDS = {"screen": [0], "generate": [1], "fresh": [11, 12, 13, 14]}
INPUT = {"kind": "captions", "file": "captions.parquet", "name": "captions.parquet", "sha256": "ab" * 32}
# What the run read and how, as its manifest says.
READ: dict[str, Any] = {
    "config": {"model": "model", "captions": "captions.parquet", "images": "images/*.tar"},
    "resolved": {
        "model": {"path": "model"},
        "screen": {"detectors": ["caption_response"], "seeds": [0]},
        "select": {"budget": {"captions": 38}, "audit_sample": 40, "seed": 0, "perturbation_margin": True},
        "captions": {"path": "captions.parquet", "sample": None},
        "images": {"path": "images/*.tar"},
        "generate": {"seeds": [1], "steps": 20, "guidance_scale": 4.0},
        "confirm": {"embedders": ["sscd", "clip"], "fresh_seeds": 4, "control_captions": 100, "control_rate": 0.01},
        "report": {"title": "Audit of the test model"},
    },
    "models": {
        "model": {"unet": "12" * 32, "vae": "34" * 32, "resolution": "512 x 512"},
        "sscd": {"sscd.safetensors": "56" * 32},
    },
    "packages": {"torch": "2.14.1", "diffusers": "0.42.1"},
    "seeds": SEEDS | {"sample": 0, "captions": 0},
}
CALIBRATION = {
    "control_captions": 200,
    "removed": 3,
    "fit": 100,
    "held_out": 100,
    "detector": "caption_response",
    "likeness": {
        "auc": 0.6,
        "low": 0.55,
        "high": 0.65,
        "limit": 0.75,
        "controls": 200,
        "captions": 318,
        "control_topics": 90,
        "caption_topics": 80,
        "of_controls": [{"word": "control", "controls": 1.0, "captions": 0.0}],
        "of_captions": [{"word": "ordinary", "controls": 0.0, "captions": 0.9}],
    },
    "strata": [
        {
            "kind": "length",
            "name": "0 to 25 characters",
            "controls": 100,
            "above": [1, 5],
            "low": [0.0, 0.02],
            "high": [0.05, 0.11],
            "share_controls": 1.0,
            "share_captions": 0.9,
        }
    ],
}


def stages(rows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the stages of the manifest, from the rows of each table."""
    return {
        "ingest": {"rows_in": rows["rows"] + 1, "rows_out": rows["rows"], "errors": 2, "seconds": 1.5},
        "embed": {"rows_in": rows["evidence"] + 1, "rows_out": rows["evidence"], "errors": 1},
        "screen": {"rows_in": rows["captions"], "rows_out": rows["captions"], "errors": 0, "seconds": 64.2},
        "generate": {"rows_in": 259, "rows_out": 259, "errors": 1, "seconds": 3725.0},
    }
