"""The forms in which checkpoints lie on disk run from audit.yaml to the report, without network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import audit
from audit.record.ledger import Ledger
from reports.check import check
from tests.support.original_layout import single_file
from tests.support.paths import DATA
from tests.support.toy import MODEL, write_config

pytestmark = pytest.mark.slow

# Two forwards per caption; the profile takes eight.
DETECTORS = ["attention_profile", "noise_magnitude"]


# Scheduler files of published models: an early SD v1-4, SD 2.1, and a fine-tune of it with zero terminal SNR.
EARLY = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.4.0", "beta_end": 0.012, "beta_start": 0.00085}
EARLY |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "skip_prk_steps": True}
VELOCITY = EARLY | {"_class_name": "DDIMScheduler", "_diffusers_version": "0.10.0", "prediction_type": "v_prediction"}
VELOCITY |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
VELOCITY = {key: value for key, value in VELOCITY.items() if key != "skip_prk_steps"}
SCHEDULERS = {
    "SD v1-4 in fp16": EARLY,
    "SD 2.1": VELOCITY,
    "single file of zero terminal SNR": VELOCITY | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}


def with_scheduler(folder: Path, name: str) -> Path:
    source = DATA / "tiny-sd2" if name == "SD 2.1" else MODEL
    copy = Path(shutil.copytree(source, folder / "model"))
    (copy / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULERS[name]))
    return copy


def only_in_fp16(model: Path) -> Path:
    for file in model.rglob("*.safetensors"):
        tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(tensors, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    return model


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("form", SCHEDULERS)
def test_a_form_runs_from_audit_yaml_to_the_report(
    make_dataset: Callable[[Path], Path],
    audited: Callable[..., str],
    tmp_path: Path,
    offline: None,
    form: str,
) -> None:
    make_dataset(tmp_path)
    model: dict[str, object]
    if form.startswith("single file"):
        file, config = single_file(with_scheduler(tmp_path, form), tmp_path)
        embedding = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        save_file({"picture": embedding}, tmp_path / "picture.safetensors")
        model = {"path": file.name, "config": config.name, "textual_inversion": "picture.safetensors"}
        loaded = audit.load_model(file, config=config, textual_inversion=[tmp_path / "picture.safetensors"])
    elif form.endswith("in fp16"):
        model = {"path": only_in_fp16(with_scheduler(tmp_path, form)).name, "resolution": 48}
        loaded = audit.load_model(tmp_path / "model", resolution=48)
    else:
        model = {"path": with_scheduler(tmp_path, form).name}
        loaded = audit.load_model(tmp_path / "model")
    calibration = {"captions": "control_captions.txt"}
    captions = "captions/00000.parquet"
    path = write_config(
        tmp_path, model=model, captions=captions, images=None, calibration=calibration, select={"budget": 2}
    )
    settings = ("select.audit_sample=1", "captions.sample=4", f"screen.detectors=[{','.join(DETECTORS)}]")
    ledger = Ledger(audited(path, *settings))
    assert [result for result in check(ledger.uri) if not result.ok] == []

    manifest = json.loads(Path(ledger.uri, "manifest.json").read_text())
    height, width = loaded.resolution
    assert manifest["models"]["model"] == loaded.fingerprint
    assert f"{height} x {width} pixels" in Path(ledger.uri, "report.html").read_text()
    captions = dict(
        zip(*(ledger.read("captions")[name].to_pylist() for name in ("caption_id", "caption")), strict=True)
    )
    screen = ledger.read("screen")
    again = audit.screen(loaded, [captions[key] for key in screen["caption_id"].to_pylist()], detectors=DETECTORS)
    for name in ("layer_entropy", "noise_magnitude"):
        np.testing.assert_allclose(screen[name].to_pylist(), again[name].to_pylist(), atol=1e-4)
