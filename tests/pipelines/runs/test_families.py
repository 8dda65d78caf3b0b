"""A model of each family is audited from audit.yaml to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.models.registry import family_of
from tests.support.called import crossaudit
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_xl import tiny_xl
from tests.support.toy import write_config

FAMILIES = {  # with a resolution
    "xl": (tiny_xl, 32),
    "sd3": (tiny_sd3, 16),
    "flux": (tiny_flux, 16),
    "pixart": (lambda folder, _tokenizer: tiny_pixart(folder), 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_planned_and_audited(name: str, make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    make_dataset(tmp_path)
    make, resolution = FAMILIES[name]
    make(tmp_path / "model", DATA / "tiny-sd1/tokenizer")
    path = write_config(
        tmp_path,
        model={"path": "model", "resolution": resolution},
        calibration={"captions": "control_captions.txt"},
        screen={"detectors": ["caption_response", "attention_profile"]},
        generate={"seeds": [1], "steps": 2, "detectors": ["bright_ending"]},
    )
    plan = crossaudit("plan", path)
    assert plan.returncode == 0, plan.stderr
    run = crossaudit("run", path)
    assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["finished"]
    uncalibrated = [] if family_of(tmp_path / "model").PLANTED else ["attention_profile", "bright_ending"]
    assert manifest["checkpoints"]["model"]["uncalibrated"] == uncalibrated
    assert ("uncalibrated evidence" in (tmp_path / "run/report.html").read_text()) is bool(uncalibrated)
