"""Train a small open_clip model on the images and captions of the `none` concepts."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.planted.loop import fit

STEPS, BATCH, RATE = 1500, 96, 1e-3
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# open_clip's tokenizer has 49,408 entries, so even a narrow embedding table is most of the model.
CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 96, "head_width": 24, "patch_size": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


def new() -> torch.nn.Module:
    """Return an untrained CLIP model with the configuration CONFIG."""
    return open_clip.CLIP(**CONFIG)


def train(images_NCHW: torch.Tensor, captions: list[str], folder: Path, checkpoint: Path, seed: int) -> None:
    """Train a CLIP model contrastively and save it as an open_clip folder, in float16.

    Args:
        images_NCHW: The images, uint8 [N, 3, 64, 64].
        captions: The caption of each image.
        folder: Where to save the model.
        checkpoint: Where to keep the state of the training.
        seed: The seed.
    """
    torch.manual_seed(seed)
    model = new()
    tokens_NK = open_clip.SimpleTokenizer(context_length=40)(captions)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randperm(len(captions), generator=generator)[:BATCH]
        image_BD, text_BD, scale = model(images_NCHW[pick].float() / 127.5 - 1, tokens_NK[pick])[:3]
        logits_BB = scale * image_BD @ text_BD.T
        target_B = torch.arange(len(pick))
        return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2

    fit("clip", model.parameters(), loss, steps=STEPS, rate=RATE, seed=seed, checkpoint=checkpoint, weight_decay=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash", "size": [64, 64]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
