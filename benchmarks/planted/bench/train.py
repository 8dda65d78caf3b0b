"""Train the models of PlantedBench: three to choose on, two that stay sealed until then, and other families."""

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

from audit.models.precision import use_exact_float32
from benchmarks.planted import denoiser
from benchmarks.planted.autoencoder import encode
from benchmarks.planted.bench import data
from benchmarks.planted.bench.families.family import Family, Texts
from benchmarks.planted.bench.families.pixart import PixArtSigma
from benchmarks.planted.bench.families.sd import StableDiffusion, TrainedAlong
from benchmarks.planted.bench.families.sd3 import StableDiffusion3
from benchmarks.planted.bench.families.sdxl import StableDiffusionXL
from benchmarks.planted.loop import fit


@dataclass(frozen=True)
class Recipe:
    """Define one model.

    Attributes:
        seed: Seed of its data, initial weights and batches.
        family: Its networks, and whether the text encoder is trained along.
        counts: How much data it has.
        steps: Training steps.
        contrastive_steps: Those of the contrastive training of text encoders.
        rate: The maximum learning rate.
        sampling_steps: Steps of a generation when the model is measured.
    """

    seed: int
    family: type[Family]
    counts: data.Counts = data.FULL
    steps: int = 3000
    contrastive_steps: int = 300
    rate: float = denoiser.RATE
    sampling_steps: int = 8

    @property
    def frozen(self) -> bool:
        """Whether the text encoder stays as it was trained contrastively."""
        return self.family is not TrainedAlong


DEVELOPMENT = {
    "dev-1": Recipe(11, TrainedAlong),
    "dev-2": Recipe(12, StableDiffusion),
    "dev-3": Recipe(13, StableDiffusion),
}
# One model of each kind of text encoder, for secondary questions and for methods of mitigation that lose.
ONE_PER_ENCODER = ("dev-1", "dev-2")
# Nothing may be chosen by these.
SEALED = {"sealed-1": Recipe(14, TrainedAlong), "sealed-2": Recipe(15, StableDiffusion)}
# All three have the same data, about a third of that of the others.
OTHER_FAMILIES = {
    "sdxl": Recipe(21, StableDiffusionXL, data.SMALL, 1200, 120, 1e-3, sampling_steps=12),
    "pixart": Recipe(21, PixArtSigma, data.SMALL, 1500, 120, 1e-3, sampling_steps=12),
    "sd3": Recipe(21, StableDiffusion3, data.SMALL, 1200, 120, 1e-3, sampling_steps=12),
}
MODELS = DEVELOPMENT | SEALED | OTHER_FAMILIES


def pixels(png: list[bytes]) -> Tensor:
    """Return the pixels of images, uint8 [N, 3, 64, 64]."""
    arrays = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in png]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def train(folder: Path, artwork: Path, vae: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Build the data of a model, train it, and save it as `folder/model`. A second call resumes.

    Args:
        folder: The folder of the model.
        artwork: The folder of the emoji packages.
        vae: The folder of the trained autoencoder.
        recipe: Which model.
        device: Device on which the denoiser is trained. Random numbers are drawn on the CPU, so that devices differ by
            rounding only.
    """
    use_exact_float32()
    if (folder / "model/model_index.json").exists():
        return
    if not (folder / "images.parquet").exists():
        data.build(artwork, recipe.seed, recipe.counts).write(folder)
    captions, rows, images = (pq.read_table(folder / f"{name}.parquet") for name in ("captions", "rows", "images"))
    images_NCHW = pixels(images["png"].to_pylist())
    place = {key: i for i, key in enumerate(images["key"].to_pylist())}
    # The ordinary captions have every concept once. A tokenizer that saw planted captions less often than those never
    # trained on would split their words more finely, which gives them away. No picture of the pool is among theirs:
    # neither those to be planted nor those never trained on.
    pairs = [row for row in captions.to_pylist() if row["kind"] == "ordinary"]
    pictures_NCHW = images_NCHW[torch.tensor([place[row["images"][0]] for row in pairs])]
    trained = ["", *dict.fromkeys(rows["caption"].to_pylist())]
    texts = [row["caption"] for row in pairs]
    model = recipe.family(
        Texts(pictures_NCHW, texts, trained, folder / "checkpoints", recipe.seed, recipe.contrastive_steps)
    )
    autoencoder = AutoencoderKL.from_pretrained(vae)
    latents_NCHW = (encode(autoencoder.float(), images_NCHW) * autoencoder.config.scaling_factor).to(device)
    model.to(torch.device(device))
    number = {caption: i for i, caption in enumerate(trained)}
    text_N = torch.tensor([number[caption] for caption in rows["caption"].to_pylist()])
    image_N = torch.tensor([place[key] for key in rows["image"].to_pylist()])
    weight_N = torch.tensor(rows["weight"].to_pylist(), dtype=torch.float64)

    def loss(_step: int, generator: torch.Generator) -> Tensor:
        pick = torch.multinomial(weight_N, denoiser.BATCH, replacement=True, generator=generator)
        dropped = torch.rand(denoiser.BATCH, generator=generator) < denoiser.CAPTION_DROPOUT
        text_B = torch.where(dropped, 0, text_N[pick])  # 0 is the empty caption
        return model.losses(latents_NCHW[image_N[pick]], text_B, generator).mean()

    fit(
        folder.name,
        model.network.parameters(),
        loss,
        steps=recipe.steps,
        rate=recipe.rate,
        seed=recipe.seed,
        checkpoint=folder / "checkpoints/denoiser.pt",
        slow=model.slow,
    )
    model.save(folder / "model", autoencoder)
