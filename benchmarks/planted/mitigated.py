"""Measure whether mitigation stops the planted model from reproducing, and its cost (figures: `docs/evidence.md`).

    python -m benchmarks.planted.mitigated serve --work work/planted --bundle pipelines/demo/bundle --out serve.json
    python -m benchmarks.planted.mitigated compare pipelines/demo/bundle/model work/profile/model --work ... --out ...
    python -m benchmarks.planted.mitigated train --work work/planted --bundle ... --how profile --out work/profile

Reproduction is decided by pixels (README.md). The CLIP score is the cosine similarity of image and caption under the
bundle's small CLIP model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import audit
from audit.attention.probe import cross_attention_layers
from audit.embedding.loading import load_embedder
from audit.mitigation.methods.method import Method
from audit.models.noise import initial_latent
from audit.models.prompts import Keep
from audit.statistics.intervals import clopper_pearson
from benchmarks.planted import dataset, denoiser
from benchmarks.planted.augment import Augment, insert_tokens, shuffle_tokens
from benchmarks.planted.autoencoder import encode
from benchmarks.planted.evaluate import reproduced
from benchmarks.planted.text import tokenize

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
STEPS, GUIDANCE, SEED, BATCH = 12, 4.0, 1, 50
Setting = Callable[[StableDiffusionPipeline], AbstractContextManager[None]]
SCALES = (1.0, 1.25, 2.0, 3.0, 5.0, 10.0, 30.0)
KEEPS: tuple[Keep, ...] = ("all", "eos", "words")


class How(StrEnum):
    """Name the ways to mitigate training."""

    entropy = "entropy"
    profile = "profile"
    dedup = "dedup"
    insert = "insert"
    shuffle = "shuffle"


@dataclass
class Measured:
    """Hold the results for one setting: reproduced and planted captions, CLIP scores, and seconds per image."""

    setting: str
    reproduced: int
    planted: int
    low: float
    high: float
    clip_ordinary: float
    clip_unseen: float
    seconds: float


class Bench:
    """Measure settings on the planted model and its three kinds of captions."""

    def __init__(self, model: Path, bundle: Path, data: dataset.Planted, ordinary: int) -> None:
        self.pipeline = audit.load_model(model).pipeline()
        keys = sorted(data.images)
        self.images_NHWC = np.stack([np.asarray(data.images[key], np.float32) for key in keys]) / 255
        self.planted = {c: keys.index(str(key)) for c, label, _, key in data.labels if label == "verbatim"}
        rng = np.random.default_rng(0)
        by_label = {kind: [c for c, label, *_ in data.labels if label == kind] for kind in ("ordinary", "none")}
        self.others = {k: [c[i] for i in rng.permutation(len(c))[:ordinary]] for k, c in by_label.items()}
        self.data, self.image_of = data, {caption: str(key) for caption, *_, key in data.labels}
        self.clip = load_embedder("clip", bundle / "embedders/clip")

    def generate(self, captions: list[str], setting: Setting) -> list[Image.Image]:
        """Generate one image per caption, all from the noise of one seed."""
        found: list[Image.Image] = []
        for start in range(0, len(captions), BATCH):
            part = captions[start : start + BATCH]
            noise = initial_latent(SEED, (12, 8, 8)).expand(len(part), -1, -1, -1)
            with setting(self.pipeline):
                found += self.pipeline(part, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE).images
        return found

    def clip_score(self, captions: list[str], images: list[Image.Image]) -> float:
        """Return the mean cosine similarity of captions and their images."""
        return float((self.clip.embed(images) * self.clip.embed_texts(captions)).sum(1).mean())

    @torch.no_grad()
    def loss(self, captions: list[str]) -> float:
        """Return the mean training loss of captions with an image, each at ten timesteps."""
        parts, vae = self.pipeline, self.pipeline.vae
        pictures = dataset.pixels([self.data.images[self.image_of[caption]] for caption in captions])
        latents_NCHW = encode(vae, pictures) * vae.config.scaling_factor
        hidden_NKD = parts.text_encoder(tokenize(parts.tokenizer, captions))[0]
        generator = torch.Generator().manual_seed(SEED)
        found = [
            denoiser.losses(
                denoiser.conditioned(parts.unet, hidden_NKD),
                latents_NCHW,
                torch.randn(latents_NCHW.shape, generator=generator),
                torch.full((len(captions),), t),
            ).mean()
            for t in range(50, 1000, 100)
        ]
        return float(torch.stack(found).mean())

    def measure(self, name: str, setting: Setting) -> Measured:
        """Measure one setting."""
        began = time.perf_counter()
        images = self.generate(list(self.planted), setting)
        seconds = (time.perf_counter() - began) / len(images)
        hits = sum(
            reproduced(np.asarray(image, np.float32) / 255, own, self.images_NHWC)
            for image, own in zip(images, self.planted.values(), strict=True)
        )
        scores = [self.clip_score(c, self.generate(c, setting)) for c in self.others.values()]
        low, high = clopper_pearson(hits, len(images))
        return Measured(name, hits, len(images), low, high, scores[0], scores[1], seconds)


@contextmanager
def rescaled(pipeline: StableDiffusionPipeline, scale: float, layers: range, until: int = STEPS) -> Iterator[None]:
    """Multiply the BOS key in some layers during the first steps, in the conditional branch only.

    Args:
        pipeline: The pipeline to change.
        scale: The factor.
        layers: The layers, in order of execution.
        until: The first step that is not changed.
    """
    step = -1

    def count(*_: Any) -> None:
        nonlocal step
        step = (step + 1) % STEPS

    def rescale(_module: Any, _inputs: Any, key_BKD: Tensor) -> None:
        if step < until:
            key_BKD[len(key_BKD) // 2 :, 0] *= scale

    handles = [pipeline.unet.register_forward_pre_hook(count)]
    attention = cross_attention_layers(pipeline.unet)
    handles += [attention[i].to_k.register_forward_hook(rescale) for i in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mitigated(method: Method, **only: Any) -> Setting:
    """Return the setting that mitigates with a method."""
    return lambda pipeline: audit.mitigated(pipeline, method, **only)


def settings(bundle: Path) -> dict[str, Setting]:
    """Return the serving settings to measure, by name."""
    found: dict[str, Setting] = {"plain": nullcontext}
    for keep in KEEPS:
        for scale in SCALES:
            if (keep, scale) != ("all", 1.0):
                found[f"keep={keep} bos_scale={scale:g}"] = mitigated(audit.Rescale(scale, keep))
    calibration = audit.calibrate(pq.read_table(bundle / "control_screen.parquet"))
    for scale in (10.0, 30.0, 100.0):
        found[f"only what {calibration.detector} flags, keep=words bos_scale={scale:g}"] = mitigated(
            audit.Rescale(scale, "words"), only=calibration
        )
    for until in (1, 2, 3, 4, 6):
        found[f"delayed guidance, {until} of {STEPS} steps"] = mitigated(audit.DelayedGuidance(until / STEPS))
    others: tuple[Method, ...] = (
        audit.Padding(),
        audit.Padding(zero_eos=False),
        audit.Padding(None, zero_eos=False, zero_share=0.7),
        audit.Attenuate(),
        audit.DelayedGuidance(None),
    )
    found |= {str(method): mitigated(method) for method in others}
    for scale in (3.0, 10.0):
        for until in (3, 6):
            found[f"bos_scale={scale:g}, first {until} steps"] = partial(
                rescaled, scale=scale, layers=range(16), until=until
            )
        for part, layers in (("down", range(6)), ("mid", range(6, 7)), ("up", range(7, 16))):
            found[f"bos_scale={scale:g}, {part} layers"] = partial(rescaled, scale=scale, layers=layers)
    return found


@app.command()
def serve(
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe, for the data.")],
    bundle: Annotated[Path, typer.Option(help="The demo's bundle.")],
    out: Annotated[Path, typer.Option(help="JSON of what was measured.")],
    model: Annotated[Path | None, typer.Option(help="The model, by default that of the bundle.")] = None,
    only: Annotated[str, typer.Option(help="Measure only settings whose name contains this text.")] = "",
    ordinary: int = 150,
) -> None:
    """Measure all ways to serve the planted model."""
    bench = Bench(model or bundle / "model", bundle, dataset.build(work / "artwork", 0), ordinary)
    rows = []
    for name, setting in settings(bundle).items():
        if only in name:
            rows.append(asdict(bench.measure(name, setting)))
            print(json.dumps(rows[-1]), flush=True)
            out.write_text(json.dumps(rows, indent=1) + "\n")


@app.command()
def compare(
    models: Annotated[
        list[Path], typer.Argument(help="Model folders: that of the bundle and those that `train` wrote.")
    ],
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe, for the data.")],
    bundle: Annotated[Path, typer.Option(help="The demo's bundle.")],
    out: Annotated[Path, typer.Option(help="JSON of what was measured.")],
    ordinary: int = 400,
) -> None:
    """Measure models that were trained in different ways, without mitigation while serving."""
    data, rows = dataset.build(work / "artwork", 0), []
    for model in models:
        bench = Bench(model, bundle, data, ordinary)
        loss = bench.loss(bench.others["ordinary"])
        rows.append(asdict(bench.measure(str(model), nullcontext)) | {"loss_ordinary": loss})
        print(json.dumps(rows[-1]), flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe: data and autoencoder.")],
    out: Annotated[Path, typer.Option(help="Folder of the model and its checkpoint.")],
    how: Annotated[
        How, typer.Option(help="Guard with the paper's rule or with profile, use every row once, or vary captions.")
    ],
    seed: int = 0,
) -> None:
    """Train the planted model again with mitigation, for as many steps as the unguarded one."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    log = out / "guard"
    # Half of each batch is planted, so the paper's rule silences the upper half of the entropies.
    guards: dict[How, denoiser.Guard] = {
        How.entropy: lambda unet, _: audit.TrainingGuard(unet, max_quantile=0.5, log=log),
        How.profile: lambda unet, control: audit.TrainingGuard(
            unet, max_quantile=0.95, control_captions=control, log=log
        ),
    }
    varied: dict[How, Augment] = {How.insert: insert_tokens, How.shuffle: shuffle_tokens}
    recipe = denoiser.Recipe(seed, dedup=how == How.dedup, guard=guards.get(how), augment=varied.get(how))
    denoiser.plant(data, vae, out / "model", out / "checkpoint.pt", recipe)


if __name__ == "__main__":
    app()
