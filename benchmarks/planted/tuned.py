"""Measure what a reference model adds, on a planted fine-tune of the shipped model, screened with and without it.

    python -m benchmarks.planted.tuned --work work/planted --bundle pipelines/demo/bundle --out work/tuned

The fine-tune memorizes forty pictures that the base never saw. The base has memorized a hundred others. With the base
as reference, the forty should stand out and the hundred should not, because both models know them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline

import audit
from audit.statistics.detection_rates import auroc, tpr_at
from benchmarks.planted import dataset, denoiser
from benchmarks.planted.autoencoder import encode
from benchmarks.planted.evaluate import decoded, reproduced
from benchmarks.planted.loop import fit
from benchmarks.planted.text import tokenize

NEW, COPIES, STEPS, RATE, BATCH = 40, 60, 600, 2e-4, 32
DETECTORS = ("attention_profile", "noise_profile", "profile", "noise_magnitude")


def tune(bundle: Path, data: dataset.Planted, new: list[int], out: Path) -> None:
    """Fine-tune UNet and text encoder on repeated new pairs mixed with the ordinary rows.

    Args:
        bundle: The demo's bundle, whose model is fine-tuned.
        data: The planted dataset.
        new: The indices of the new pairs in `data.unseen`.
        out: Where to save the model and its checkpoint.
    """
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline.from_pretrained(bundle / "model", safety_checker=None, torch_dtype=torch.float32)
    ordinary = [(data.images[str(key)], caption) for caption, label, _, key in data.labels if label == "ordinary"]
    pairs = [data.unseen[i] for i in new] * COPIES + ordinary
    with torch.no_grad():
        unique = {id(image): image for image, _ in pairs}
        latents = encode(pipe.vae, dataset.pixels(list(unique.values()))) * pipe.vae.config.scaling_factor
    place = {key: i for i, key in enumerate(unique)}
    image_N = torch.tensor([place[id(image)] for image, _ in pairs])
    tokens_NK = tokenize(pipe.tokenizer, [caption for _, caption in pairs])
    unet, encoder = pipe.unet.train(), pipe.text_encoder.train()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(pairs), (BATCH,), generator=generator)
        predict = denoiser.conditioned(unet, encoder(tokens_NK[pick])[0])
        return denoiser.drawn_losses(predict, latents[image_N[pick]], generator).mean()

    weights = [*unet.parameters(), *encoder.parameters()]
    fit("tuned", weights, loss, steps=STEPS, rate=RATE, seed=0, checkpoint=out / "checkpoint.pt")
    denoiser.save(out / "model", unet.eval(), encoder.eval(), pipe.tokenizer, pipe.vae)


def main(
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe, for the data.")],
    bundle: Annotated[Path, typer.Option(help="The demo's bundle.")],
    out: Annotated[Path, typer.Option(help="Folder of the fine-tune.")],
) -> None:
    """Fine-tune, then print how well each detector works without and with the base as reference."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", 0)
    known = set(data.calibration) | {caption for caption, *_ in data.labels}
    fresh = [i for i, (_, caption) in enumerate(data.unseen) if caption not in known]
    new = [fresh[i] for i in np.random.default_rng(0).permutation(len(fresh))[:NEW]]
    unseen = _of_other_things(data.calibration, [data.unseen[i][1] for i in new])
    if not (out / "model").exists():
        tune(bundle, data, new, out)
    model, base = audit.load_model(out / "model"), audit.load_model(bundle / "model")
    pixels_NHWC = np.stack([np.asarray(image, np.float32) / 255 for image, _ in data.unseen])
    made = audit.generate(model, [data.unseen[i][1] for i in new], [1], 12, 4.0, batch_size=40)["image"].to_pylist()
    hits = [reproduced(decoded(image), i, pixels_NHWC) for i, image in zip(new, made, strict=True)]
    positive = [data.unseen[i][1] for i, hit in zip(new, hits, strict=True) if hit]
    none = _of_other_things([c for c, label, *_ in data.labels if label == "none"], [data.unseen[i][1] for i in new])
    old = [caption for caption, label, *_ in data.labels if label == "verbatim"]
    print(
        {"reproduced": len(positive), "of": NEW, "control": len(unseen), "none": len(none), "old": len(old)}, flush=True
    )
    for name, reference in (("alone", None), ("with the base as reference", base)):
        control = audit.screen(model, unseen, (0,), ("profile", "noise_magnitude"), 64, reference)
        table = audit.screen(model, positive + none + old, (0,), ("profile", "noise_magnitude"), 64, reference)
        for detector in DETECTORS:
            scored = audit.calibrate(control, detector).score(table)
            of = {row["caption"]: row for row in scored.to_pylist()}
            high, low = ([of[caption]["score"] for caption in kind] for kind in (positive, none))
            figures = {
                "auroc": auroc(high, low),
                "tpr": tpr_at(0.01, high, low),
                "old ones with p <= 0.01": np.mean([of[caption]["p_unseen"] <= 0.01 for caption in old]),
            }
            print(name, detector, {key: round(float(value), 3) for key, value in figures.items()}, flush=True)


def _of_other_things(captions: list[str], new: list[str]) -> list[str]:
    """Return the captions that share no rare word with the new ones, because those are not valid negatives."""
    split = [set(caption.casefold().split()) for caption in captions]
    counts = Counter(word for words in split for word in words)
    things = {word for caption in new for word in caption.casefold().split() if counts[word] < 0.02 * len(captions)}
    return [caption for caption, words in zip(captions, split, strict=True) if not words & things]


if __name__ == "__main__":
    typer.run(main)
