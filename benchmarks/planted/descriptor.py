"""Train the copy descriptor (SSCD, arXiv 2202.10261) on images that the planted model never sees."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from audit.embedding.descriptor import CopyDescriptor
from benchmarks.planted.loop import fit

STEPS, BATCH, RATE = 2000, 64, 1e-3
TEMPERATURE, ENTROPY_WEIGHT = 0.05, 1.0

# What a generator does to an image that it copies: blur, colour drift, small shifts, a rescaled or covered part.
COPY = v2.Compose(
    [
        v2.RandomApply([v2.RandomResizedCrop(64, scale=(0.6, 1), ratio=(0.85, 1.18), antialias=True)], 0.5),
        v2.RandomApply([v2.GaussianBlur(7, sigma=(0.5, 2.0))], 0.6),
        v2.RandomApply([v2.ColorJitter(0.25, 0.25, 0.25, 0.04)], 0.7),
        v2.RandomHorizontalFlip(0.1),
        v2.RandomErasing(0.3, scale=(0.02, 0.15)),
        v2.RandomApply([v2.GaussianNoise(0, 0.04)], 0.4),
    ]
)


def loss_of(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
    """InfoNCE over the 2B copies of a batch plus the KoLeo entropy regulariser (SSCD, eq. 2 to 5)."""
    both_ND = torch.cat([first_BD, second_BD])
    similarity_NN = both_ND @ both_ND.T
    self_NN = torch.eye(len(both_ND), dtype=torch.bool)
    partner_N = torch.arange(len(both_ND)).roll(len(first_BD))
    contrastive = F.cross_entropy((similarity_NN / TEMPERATURE).masked_fill(self_NN, -torch.inf), partner_N)
    negatives_NN = similarity_NN.detach().masked_fill(self_NN, -torch.inf)
    negatives_NN[torch.arange(len(both_ND)), partner_N] = -torch.inf
    nearest_N = negatives_NN.argmax(1)
    distance_N = (both_ND - both_ND[nearest_N]).square().sum(1).add(1e-6).sqrt()
    return contrastive - ENTROPY_WEIGHT * distance_N.log().mean()


def train(images_NCHW: torch.Tensor, path: Path, checkpoint: Path, seed: int) -> CopyDescriptor:
    """Train on uint8 images [N, 3, 64, 64] and save one safetensors file, float16 on disk."""
    torch.manual_seed(seed)
    model = CopyDescriptor()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randperm(len(images_NCHW), generator=generator)[:BATCH]
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # torchvision draws from the global one
        batch = images_NCHW[pick].float() / 255
        views = [torch.stack([COPY(image) for image in batch]).clamp(0, 1) for _ in range(2)]
        return loss_of(model(views[0]), model(views[1]))

    fit("descriptor", model.parameters(), loss, steps=STEPS, rate=RATE, seed=seed, checkpoint=checkpoint)
    model.half().save(path)
    return CopyDescriptor.load(path)
