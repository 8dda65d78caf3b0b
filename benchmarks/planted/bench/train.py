"""Train the models of PlantedBench: three to choose on, and two that stay sealed until the choices are made."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.planted import contrastive, denoiser
from benchmarks.planted.autoencoder import encode
from benchmarks.planted.bench import data
from benchmarks.planted.loop import fit
from benchmarks.planted.text import tokenize, tokenizer_of

STEPS = 3000
CONTRASTIVE_STEPS = 300


@dataclass(frozen=True)
class Recipe:
    """Define one model.

    Attributes:
        seed: Seed of its data, initial weights and batches.
        frozen: Whether the text encoder stays as it was trained contrastively, or its layers are trained along with
            the UNet, at a tenth of its rate.
    """

    seed: int
    frozen: bool


DEVELOPMENT = {"dev-1": Recipe(11, False), "dev-2": Recipe(12, True), "dev-3": Recipe(13, True)}
# Nothing may be chosen by these.
SEALED = {"sealed-1": Recipe(14, False), "sealed-2": Recipe(15, True)}
MODELS = DEVELOPMENT | SEALED


def pixels(png: list[bytes]) -> Tensor:
    """Return the pixels of images, uint8 [N, 3, 64, 64]."""
    arrays = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in png]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def train(folder: Path, artwork: Path, vae: Path, recipe: Recipe, steps: int = STEPS) -> None:
    """Build the data of a model, train it, and save it as `folder/model`. A second call resumes.

    Args:
        folder: The folder of the model.
        artwork: The folder of the emoji packages.
        vae: The folder of the trained autoencoder.
        recipe: Which model.
        steps: Training steps.
    """
    if (folder / "model/model_index.json").exists():
        return
    if not (folder / "images.parquet").exists():
        data.build(artwork, recipe.seed).write(folder)
    captions, rows, images = (pq.read_table(folder / f"{name}.parquet") for name in ("captions", "rows", "images"))
    images_NCHW = pixels(images["png"].to_pylist())
    place = {key: i for i, key in enumerate(images["key"].to_pylist())}
    # The ordinary captions have every concept once. A tokenizer that saw planted captions less often than those never
    # trained on would split their words more finely, which gives them away.
    pairs = [row for row in captions.to_pylist() if row["kind"] == "ordinary"]
    texts = [row["caption"] for row in pairs]
    tokenizer = tokenizer_of(texts)
    torch.manual_seed(recipe.seed)
    # No picture of the pool is among these: neither those to be planted nor those never trained on.
    pictures = images_NCHW[torch.tensor([place[row["images"][0]] for row in pairs])]
    saved = folder / "checkpoints/contrastive.pt"
    encoder = contrastive.train(pictures, texts, tokenizer, saved, recipe.seed, CONTRASTIVE_STEPS)
    unet, autoencoder = denoiser.new(layers_per_block=1), AutoencoderKL.from_pretrained(vae)
    latents_NCHW = encode(autoencoder.float(), images_NCHW) * autoencoder.config.scaling_factor
    trained = ["", *dict.fromkeys(rows["caption"].to_pylist())]
    number = {caption: i for i, caption in enumerate(trained)}
    tokens_TK = tokenize(tokenizer, trained)
    text_N = torch.tensor([number[caption] for caption in rows["caption"].to_pylist()])
    image_N = torch.tensor([place[key] for key in rows["image"].to_pylist()])
    weight_N = torch.tensor(rows["weight"].to_pylist(), dtype=torch.float64)

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        pick = torch.multinomial(weight_N, denoiser.BATCH, replacement=True, generator=generator)
        dropped = torch.rand(denoiser.BATCH, generator=generator) < denoiser.CAPTION_DROPOUT
        tokens_BK = torch.where(dropped[:, None], tokens_TK[0], tokens_TK[text_N[pick]])
        return denoiser.drawn_losses(unet, latents_NCHW[image_N[pick]], encoder(tokens_BK)[0], generator).mean()

    # Token embeddings stay: how far they move tells how often a word was trained, whatever was memorized.
    slow = () if recipe.frozen else encoder.encoder.requires_grad_(True).parameters()
    fit(
        folder.name,
        unet.parameters(),
        loss,
        steps=steps,
        rate=denoiser.RATE,
        seed=recipe.seed,
        checkpoint=folder / "checkpoints/denoiser.pt",
        slow=slow,
    )
    denoiser.save(folder / "model", unet.eval(), encoder.eval(), tokenizer, autoencoder)
