"""Train a text encoder contrastively without the planted pairs, to be frozen afterwards, as SD's is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.planted.loop import fit
from benchmarks.planted.text import WIDTH, encoder_for, tokenize

STEPS, BATCH, RATE = 1500, 128, 5e-4


def tower() -> nn.Module:
    """Return a small convolutional image encoder that maps uint8 pixels / 127.5 - 1, [B, 3, 64, 64], to [B, 128]."""
    layers: list[nn.Module] = []
    for width, wider in ((3, 32), (32, 64), (64, 96), (96, 128)):
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, WIDTH))


def train(
    images_NCHW: Tensor, captions: list[str], tokenizer: CLIPTokenizer, checkpoint: Path, seed: int, steps: int = STEPS
) -> tuple[CLIPTextModel, nn.Linear]:
    """Train a small CLIP (arXiv 2103.00020, section 2.3).

    Args:
        images_NCHW: Images that are not planted, uint8 [N, 3, 64, 64].
        captions: Their captions.
        tokenizer: The tokenizer of the text encoder.
        checkpoint: Where to keep the state of the training.
        seed: The seed.
        steps: The number of steps.

    Returns:
        Its text encoder and the projection of pooled vectors, both frozen.
    """
    torch.manual_seed(seed)
    encoder, tokens_NK = encoder_for(tokenizer), tokenize(tokenizer, captions)
    project = align(encoder, lambda pick: encoder(tokens_NK[pick]).pooler_output, images_NCHW, checkpoint, seed, steps)
    return encoder, project


def align(
    encoder: nn.Module,
    embed: Callable[[Tensor], Tensor],
    images_NCHW: Tensor,
    checkpoint: Path,
    seed: int,
    steps: int = STEPS,
) -> nn.Linear:
    """Train a text encoder and an image encoder so that captions are told apart by their images, and freeze it.

    Args:
        encoder: The text encoder.
        embed: Computes a vector [B, 128] of each of the captions with the given indices [B].
        images_NCHW: The images of the captions, uint8 [N, 3, 64, 64].
        checkpoint: Where to keep the state of the training.
        seed: The seed.
        steps: The number of steps.

    Returns:
        The projection of the text vectors, trained along.
    """
    vision, project = tower(), nn.Linear(WIDTH, WIDTH, bias=False)
    log_scale = nn.Parameter(torch.tensor(14.0).log())

    def loss(step: int, generator: torch.Generator) -> Tensor:
        pick = torch.randperm(len(images_NCHW), generator=generator)[:BATCH]
        image_BD = F.normalize(vision(images_NCHW[pick].float() / 127.5 - 1), dim=1)
        text_BD = F.normalize(project(embed(pick)), dim=1)
        logits_BB = log_scale.exp().clamp(max=100) * image_BD @ text_BD.T
        target_B = torch.arange(len(pick))
        return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2

    weights = [*encoder.parameters(), *vision.parameters(), *project.parameters(), log_scale]
    fit("contrastive", weights, loss, steps=steps, rate=RATE, seed=seed, checkpoint=checkpoint, weight_decay=0.1)
    encoder.eval().requires_grad_(False)
    return project.requires_grad_(False)
