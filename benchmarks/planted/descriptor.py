"""Train the copy descriptor (SSCD, arXiv 2202.10261) on images that the planted model never sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from audit.embedding.descriptor import CopyDescriptor
from audit.verdicts.regions import LEAST, TILES
from benchmarks.planted.loop import fit

STEPS, BATCH, RATE = 2000, 64, 1e-3
TEMPERATURE, ENTROPY_WEIGHT = 0.05, 1.0
REGIONS = 8  # rectangles used to measure the floor for regions

# Imitates how generated copies differ from the original: blur, colour drift, small shifts, rescaled or covered parts.
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
    """Return InfoNCE over the 2B copies of a batch plus the KoLeo entropy regulariser (SSCD, eq. 2 to 5)."""
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


def floors(model: CopyDescriptor, images_NCHW: torch.Tensor, seed: int) -> dict[str, float]:
    """Measure from which similarity on two pictures look like copies, at the equal error rate.

    A copy (COPY) of each picture is compared with the picture itself and with the most similar other picture. A higher
    threshold misses more copies; a lower one takes more pictures for copies of others.

    Args:
        model: The descriptor.
        images_NCHW: Distinct uint8 pictures [N, 3, 64, 64] that it was not trained on.
        seed: The seed of the copies and the regions.

    Returns:
        The floors by kind: "verbatim" for whole pictures; "region" for pictures that are blank outside of random
        rectangles of tiles, which are at least as large as the smallest region that an audit compares.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = model.float().eval()
    images_NCHW = images_NCHW.float() / 255
    copies_NCHW = torch.stack([COPY(image) for image in images_NCHW]).clamp(0, 1)
    whole = _equal_error(_compared(model, copies_NCHW, images_NCHW))
    masks = [_rectangle(rng, images_NCHW.shape[-1]) for _ in range(REGIONS)]
    parts = [
        _compared(model, torch.where(mask, copies_NCHW, 1.0), torch.where(mask, images_NCHW, 1.0)) for mask in masks
    ]
    region = _equal_error((torch.cat([own for own, _ in parts]), torch.cat([other for _, other in parts])))
    return {"verbatim": round(whole, 3), "region": round(region, 3)}


def _compared(model: CopyDescriptor, copies: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the similarity of each copy to its picture [N], and to the most similar other picture [N]."""
    with torch.inference_mode():
        vectors_CD, vectors_ND = (torch.cat([model(part) for part in batch.split(BATCH)]) for batch in (copies, images))
    similarity_NN = vectors_CD @ vectors_ND.T
    own_N = similarity_NN.diagonal().clone()
    return own_N, similarity_NN.fill_diagonal_(-1).max(dim=1).values


def _equal_error(compared: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the similarity at which the share of copies below equals the share of other pictures at or above."""
    own, other = (part.sort().values for part in compared)
    candidates = torch.cat([own, other]).sort().values
    missed = torch.searchsorted(own, candidates) / len(own)
    taken = 1 - torch.searchsorted(other, candidates) / len(other)
    return float(candidates[int((missed >= taken).nonzero()[0])])


def _rectangle(rng: np.random.Generator, side: int) -> torch.Tensor:
    """Return a random rectangle of tiles with at least the share LEAST of the picture, as booleans [side, side]."""
    tile = side // TILES
    while True:
        (top, bottom), (left, right) = (np.sort(rng.choice(TILES + 1, 2, replace=False)) * tile for _ in range(2))
        if (bottom - top) * (right - left) >= LEAST * side**2:
            mask = torch.zeros(side, side, dtype=torch.bool)
            mask[top:bottom, left:right] = True
            return mask


def train(
    images_NCHW: torch.Tensor, others_NCHW: torch.Tensor, path: Path, checkpoint: Path, seed: int
) -> CopyDescriptor:
    """Train a descriptor, measure its floors and save both in one file, in float16.

    Args:
        images_NCHW: The training images, uint8 [N, 3, 64, 64].
        others_NCHW: Other images to measure the floors with, uint8 [N, 3, 64, 64].
        path: The file.
        checkpoint: Where to keep the state of the training.
        seed: The seed.

    Returns:
        The descriptor as loaded from the file.
    """
    torch.manual_seed(seed)
    model = CopyDescriptor()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randperm(len(images_NCHW), generator=generator)[:BATCH]
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # torchvision uses the global generator
        batch = images_NCHW[pick].float() / 255
        views = [torch.stack([COPY(image) for image in batch]).clamp(0, 1) for _ in range(2)]
        return loss_of(model(views[0]), model(views[1]))

    fit("descriptor", model.parameters(), loss, steps=STEPS, rate=RATE, seed=seed, checkpoint=checkpoint)
    model.half().save(path)
    add_floors(path, others_NCHW, seed)
    return CopyDescriptor.load(path)


def add_floors(path: Path, others_NCHW: torch.Tensor, seed: int) -> dict[str, float]:
    """Measure the floors of a saved descriptor and write them into its file without changing the weights.

    Args:
        path: The file of the descriptor.
        others_NCHW: Images that it was not trained on, uint8 [N, 3, 64, 64].
        seed: The seed.

    Returns:
        The floors by kind.
    """
    found = floors(CopyDescriptor.load(path), others_NCHW, seed)
    CopyDescriptor.load(path).half().save(path, found)
    return found
