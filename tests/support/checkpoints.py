"""Change the files of a model folder, and compare models by their weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import audit

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PARTS = list(WEIGHTS)


def set_config(file: Path, **values: object) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def retensor(folder: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the weights of a component."""
    file = folder / part / WEIGHTS[part]
    changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(changed, file, {"format": "pt"})


def same(one: audit.Model, other: object) -> bool:
    """Whether the networks of a model hold the same numbers as those of another, or of a pipeline."""
    pairs = [(getattr(one, part).state_dict(), getattr(other, part).state_dict()) for part in PARTS]
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in pairs
    )
