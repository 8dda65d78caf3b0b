"""What the size of image clusters adds to a screen: a planted model of whose images half are copied under varied captions.

    python -m benchmarks.planted.duplicates train --work work/planted --out work/duplicates
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL

from benchmarks.planted import dataset, denoiser
from benchmarks.planted.denoiser import Recipe

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)

VARIED = 50  # of the 100 planted images
RECIPE = Recipe(7, epochs=5, layers_per_block=1)


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe: artwork and autoencoder.")],
    out: Annotated[Path, typer.Option(help="Folder of the model and its data.")],
) -> None:
    """Train the model, and write its data beside it."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", RECIPE.seed, VARIED)
    dataset.write(data, out, RECIPE.seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    denoiser.plant(data, vae, out / "model", out / "denoiser.pt", RECIPE)


if __name__ == "__main__":
    app()
