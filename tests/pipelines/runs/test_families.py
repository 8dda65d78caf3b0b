"""Models of each family, and of pipelines without one, are audited from audit.yaml to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.models.registry import family_of
from tests.support.called import crossaudit
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_others import tiny_cogview4, tiny_hunyuan
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_sana import tiny_sana
from tests.support.tiny_xl import tiny_xl
from tests.support.toy import write_config

FAMILIES = {  # with a resolution
    "xl": (tiny_xl, 32),
    "sd3": (tiny_sd3, 16),
    "flux": (tiny_flux, 16),
    "pixart": (lambda folder, _tokenizer: tiny_pixart(folder), 16),
    "sana": (lambda folder, _tokenizer: tiny_sana(folder), 32),
}
ATTENTION = {"attention_profile", "bright_ending"}
OTHERS = {"cogview4": tiny_cogview4, "hunyuan": tiny_hunyuan}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_audited(name: str, make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    make_dataset(tmp_path)
    make, resolution = FAMILIES[name]
    make(tmp_path / "model", DATA / "tiny-sd1/tokenizer")
    _audit(
        tmp_path,
        resolution,
        screen={"detectors": ["attention_profile"]},
        generate={"seeds": [1], "steps": 2, "batch_size": 4, "detectors": ["bright_ending"]},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cogview4", pytest.param("hunyuan", marks=pytest.mark.soak)])
def test_a_folder_without_a_family_is_planned_and_audited(
    name: str, make_dataset: Callable[[Path], Path], tmp_path: Path
) -> None:
    make_dataset(tmp_path)
    OTHERS[name](tmp_path / "model")
    path = _audit(
        tmp_path,
        64,
        screen={"detectors": ["noise_alignment"]},
        generate={"seeds": [1], "steps": 2, "batch_size": 4, "detectors": ["update_norm_profile"]},
    )
    plan = crossaudit("plan", path, "--tflops", "1")  # the probe would screen and generate as the run does
    assert plan.returncode == 0, plan.stderr


def test_a_detector_of_attention_is_refused_before_a_folder_without_a_family_is_audited(
    make_dataset: Callable[[Path], Path], tmp_path: Path
) -> None:
    make_dataset(tmp_path)
    tiny_cogview4(tmp_path / "model")
    path = _written(tmp_path, 64, screen={"detectors": ["response_and_attention"]}, generate={"seeds": [1], "steps": 2})
    run = crossaudit("run", path)
    assert run.returncode != 0
    assert "attention_profile reads attention, which crossaudit does not see in a CogView4Pipeline" in run.stderr
    assert not (tmp_path / "run").exists()


def _written(folder: Path, resolution: int, **stages: Any) -> Path:
    """Write an audit.yaml for few captions and no images: what is found is not the point here."""
    return write_config(
        folder,
        captions={"path": "captions/00000.parquet", "sample": 6},
        images=None,
        model={"path": "model", "resolution": resolution},
        calibration={"captions": "control_captions.txt"},
        select={"budget": 2, "audit_sample": 1, "seed": 1},
        **stages,
    )


def _audit(folder: Path, resolution: int, **stages: Any) -> Path:
    """Run an audit, and return its audit.yaml."""
    path = _written(folder, resolution, **stages)
    run = crossaudit("run", path)
    assert run.returncode == 0, run.stderr
    manifest = json.loads((folder / "run/manifest.json").read_text())
    assert manifest["finished"]
    measured: tuple[str, ...] = family_of(folder / "model").PLANTED
    unmeasured = [name for stage in stages if stage not in measured for name in stages[stage]["detectors"]]
    uncalibrated = [name for name in unmeasured if name in ATTENTION]
    assert manifest["checkpoints"]["model"]["uncalibrated"] == uncalibrated
    assert ("uncalibrated evidence" in (folder / "run/report.html").read_text()) is bool(uncalibrated)
    return path
