"""What is said before the work starts: every problem, each with what to do about it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from audit.errors import AuditError, UsageError
from pipelines.configuration.settings import load_config
from pipelines.runs.audit import run_audit
from pipelines.runs.index import build_index
from pipelines.runs.preflight import check, look
from tests.support.called import crossaudit
from tests.support.toy import CONTROL_CAPTIONS, MODEL, settings_of, write_config


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("checked"))


def problems(dataset: Path, *overrides: str, out: str | None = None) -> list[str]:
    return [str(problem) for problem in look(load_config(dataset, overrides, out)[0])[0]]


def test_a_sound_configuration_has_no_problem_and_nothing_is_written(dataset: Path) -> None:
    before = sorted(dataset.parent.rglob("*"))
    found = crossaudit("run", str(dataset), "--check-only")
    assert (found.returncode, found.stdout) == (0, "no problems found in 2 caption files and 2 image files\n")
    assert sorted(dataset.parent.rglob("*")) == before


def test_all_problems_are_in_one_list(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(CONTROL_CAPTIONS[:20]))
    (tmp_path / "file").touch()
    wrong = ["captions=/nowhere/a.csv", "images=/nowhere/*.tar", "model=/nowhere/model", "screen.detectors=[profil]"]
    wrong += [f"calibration.captions={tmp_path}/few.txt", "confirm.sscd.weights=/nowhere/w.pt", "index.path=/nowhere/i"]
    wrong += [f"out={tmp_path}/file", "lora=/nowhere/lora.safetensors"]
    options = [part for override in wrong for part in ("--set", override)]
    found = crossaudit("run", str(dataset), "--check-only", *options)
    assert found.returncode == 1
    assert "9 problems:" in found.stderr
    for expected in (
        "a.csv: no such file",
        "*.tar: no file matches",
        "/nowhere/model: no such model",
        "screen.detectors: unknown detector 'profil'",
        "20 control captions are not in the dataset; confirm.control_rate 0.05 needs 38",
        "w.pt: no such file or folder",
        "/nowhere/i: index.path is not a finished index",
        "file: is a file, not a folder",
        "lora.safetensors: no such file or folder",
    ):
        assert expected in found.stderr
    with pytest.raises(AuditError, match="9 problems"):
        run_audit(*load_config(dataset, wrong))


def test_lora_weights_have_to_fit_the_model(dataset: Path, tmp_path: Path) -> None:
    weights = tmp_path / "lora.safetensors"
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora"
    save_file({f"{layer}_{factor}.weight": torch.zeros(3, 5) for factor in "AB"}, weights)
    (found,) = problems(dataset, f"lora={weights}")
    assert "its weights do not fit the layer unet_down_blocks_0" in found
    save_file({f"{layer.replace('down', 'no')}_A.weight": torch.zeros(3, 5)}, weights)
    (found,) = problems(dataset, f"lora={weights}")
    assert "belongs to no layer of this model" in found


def test_a_resolution_that_the_unet_cannot_take_is_refused_first(dataset: Path) -> None:
    (found,) = problems(dataset, "screen.resolution=[18, 32]")
    assert "screen.resolution: the resolution is 18 x 32" in found
    assert "a multiple of 4 pixels" in found


def test_control_captions_have_to_reach_the_rate_of_the_threshold_too(dataset: Path) -> None:
    found = problems(dataset, "confirm.control_rate=0.001", "confirm.control_captions=2000")
    assert len(found) == 1
    assert "confirm.control_rate 0.001 needs 1998" in found[0]


@pytest.mark.parametrize(
    ("place", "expected"),
    [("file", "is a file, not a folder"), ("file/run", "which is not a folder"), ("/proc/run", "cannot be written to")],
)
def test_a_run_that_cannot_be_written_is_refused_first(
    dataset: Path, tmp_path: Path, place: str, expected: str
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / place)
    with pytest.raises(UsageError, match=expected):
        run_audit(*load_config(dataset, (), out))
    with pytest.raises(UsageError, match=expected):
        build_index(*load_config(dataset), out=out)


def test_a_run_in_memory_is_refused_if_workers_are_other_processes(dataset: Path) -> None:
    [found] = problems(dataset, "out=memory://run", "engine.workers=1")
    assert found.startswith("memory://run: is in the memory of this process")
    assert "engine.workers: 0" in found
    assert problems(dataset, "out=memory://run", "engine.workers=0") == []


def model_in(folder: Path, change: Callable[[Path], Any]) -> str:
    """A copy of the tiny model that something has happened to."""
    for file in MODEL.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(MODEL)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    change(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return f"model={folder}"


def without_one(file: Path) -> None:
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without_one, "unet: 1 of its 208 weights are missing (conv_in.weight)"),
        (lambda file: file.write_bytes(file.read_bytes()[:2000]), "The file is damaged or cut short"),
        (lambda file: file.rename(file.with_suffix(".bin")), "is a pickle; refused"),
        (lambda file: file.unlink(), "no diffusion_pytorch_model.safetensors"),
        (lambda file: (file.parent / "config.json").write_text("{"), "not readable as JSON"),
        (lambda file: (file.parents[1] / "text_encoder_2").mkdir(), "two text encoders"),
    ],
    ids=["a tensor", "cut", "pickle", "none", "configuration", "family"],
)
def test_a_model_is_looked_at_without_loading_it(
    dataset: Path, tmp_path: Path, change: Callable[[Path], Any], expected: str
) -> None:
    [found] = problems(dataset, model_in(tmp_path / "model", change))
    assert expected in found


def test_a_single_file_is_looked_at_by_its_header(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    [found] = problems(dataset, f"model={tmp_path}/model.ckpt")
    assert "must be .safetensors" in found
    [found] = problems(dataset, f"model={tmp_path}/model.safetensors")
    assert "The file is damaged or cut short" in found


def test_a_cluster_has_to_answer_and_to_be_used_with_a_token(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token")
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    [found] = problems(dataset, "engine.workers=1", f"engine.address={address}")
    assert f"{address}: no answer" in found
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    [found] = problems(dataset, "engine.workers=1", f"engine.address={address}")
    assert "must be used with a token" in found


def test_without_images_no_embedder_is_looked_for(tmp_path: Path, dataset: Path) -> None:
    path = write_config(dataset.parent, **settings_of(images=None, confirm={}, out="screened"))
    try:
        assert len(check(load_config(path)[0]).captions) == 2
    finally:
        write_config(dataset.parent)


def test_the_default_columns_are_found_or_the_error_lists_the_columns(dataset: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in CONTROL_CAPTIONS]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    (tmp_path / "controls.jsonl").write_text("\n".join(rows))
    files = [f"captions={tmp_path}/captions.jsonl", f"calibration.captions={tmp_path}/controls.jsonl"]
    assert problems(dataset, *files) == []
    for part in ("captions", "controls"):
        (tmp_path / f"{part}.jsonl").write_text('{"text": "one", "prompt": "two"}')
    captions, controls = problems(dataset, *files)
    assert "there is text, prompt" in captions
    assert "Set captions.caption" in captions
    assert "there is text, prompt" in controls
    assert "Set calibration.column" in controls
