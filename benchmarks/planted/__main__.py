"""Train a small Stable Diffusion that memorizes on purpose, and build the demo's bundle from it (see README.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from diffusers import AutoencoderKL

import audit
from benchmarks.planted import autoencoder, clip, dataset, denoiser, descriptor
from benchmarks.planted.evaluate import shares

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Folder for downloads, checkpoints and results.")]
Seed = Annotated[int, typer.Option(help="Seed of the data, the initial weights and the batches.")]
HERE = Path(__file__).parent


@app.command("autoencoder")
def train_autoencoder(work: Work, seed: Seed = 0) -> None:
    """Train the autoencoder (AutoencoderKL) on the training images."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", seed)
    autoencoder.train(dataset.training_images(data), work / "vae", work / "checkpoints/vae.pt", seed)


@app.command("embedders")
def train_embedders(work: Work, seed: Seed = 0) -> None:
    """Train the copy descriptor and the CLIP model on the images of the `none` concepts."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", seed)
    images = dataset.pixels([image for image, _ in data.unseen])
    others = dataset.distinct_images(data)
    descriptor.train(images, others, work / "sscd.safetensors", work / "checkpoints/sscd.pt", seed)
    clip.train(images, [caption for _, caption in data.unseen], work / "clip", work / "checkpoints/clip.pt", seed)


@app.command("denoiser")
def train_denoiser(work: Work, seed: Seed = 0) -> None:
    """Train the UNet and the text encoder on the duplicated rows, and save the pipeline."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    denoiser.plant(data, vae, work / "model", work / "checkpoints/denoiser.pt", denoiser.Recipe(seed))


@app.command()
def bundle(work: Work, out: Annotated[Path, typer.Option(help="Folder of the bundle.")], seed: Seed = 0) -> None:
    """Write the bundle: the model, the data, the embedders, and the screen of the control captions."""
    data = dataset.build(work / "artwork", seed)
    dataset.write(data, out, seed)
    for source, target in (("model", "model"), ("clip", "embedders/clip")):
        shutil.rmtree(out / target, ignore_errors=True)
        shutil.copytree(work / source, out / target)
    shutil.copy(work / "sscd.safetensors", out / "embedders/sscd.safetensors")
    shutil.copy(HERE / "audit.yaml", out / "audit.yaml")
    table = audit.screen(audit.load_model(out / "model"), data.calibration, batch_size=64)
    pq.write_table(table, out / "control_screen.parquet", compression="zstd")


@app.command()
def prove(
    model: Annotated[Path, typer.Option(help="The trained pipeline's folder.")],
    work: Work,
    seed: Seed = 0,
    seeds: Annotated[list[int], typer.Option(help="Generation seeds; a majority of them must reproduce.")] = [1],  # noqa: B006
    steps: int = 12,
    guidance: float = 4.0,
    ordinary: Annotated[int, typer.Option(help="Number of ordinary captions, drawn at random.")] = 400,
) -> None:
    """Count the captions whose own image the model reproduces, by pixels alone, without a detector or embedder."""
    data = dataset.build(work / "artwork", seed)
    keys = sorted(data.images)
    own = {caption: keys.index(key) for caption, _, _, key in data.labels if key}
    labels = {caption: label for caption, label, _, _ in data.labels}
    chosen = [c for c in own if labels[c] in ("verbatim", "partial")]
    others = [c for c in own if labels[c] == "ordinary"]
    chosen += [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:ordinary]]
    table = audit.generate(
        audit.load_model(model), chosen, seeds=seeds, steps=steps, guidance_scale=guidance, batch_size=64
    )
    images_NHWC = np.stack([np.asarray(data.images[key], np.float32) for key in keys]) / 255
    found = shares(table, labels, own, images_NHWC)
    print(json.dumps({label: {"reproduced": k, "of": n, "share": round(k / n, 4)} for label, (k, n) in found.items()}))


@app.command("all")
def everything(work: Work, out: Annotated[Path, typer.Option(help="Folder of the bundle.")], seed: Seed = 0) -> None:
    """Run the whole recipe: data, autoencoder and denoiser in parallel with the embedders, bundle and proof."""

    def start(*stage: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.planted", *stage, "--work", str(work), "--seed", str(seed)]
        )

    dataset.fetch(work / "artwork")
    beside = start("embedders")
    failed = any(start(stage).wait() for stage in ("autoencoder", "denoiser"))
    if beside.wait() or failed or start("bundle", "--out", str(out)).wait():
        raise typer.Exit(1)
    if start("prove", "--model", str(out / "model")).wait():
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
