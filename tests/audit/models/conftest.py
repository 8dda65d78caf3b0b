"""A folder that a test may damage, and what it does to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of tiny-sd1."""
    return Path(shutil.copytree(data / "tiny-sd1", tmp_path / "model"))


def set_config(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def retensor(folder: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the weights of a component."""
    file = folder / part / WEIGHTS[part]
    changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(changed, file, {"format": "pt"})
