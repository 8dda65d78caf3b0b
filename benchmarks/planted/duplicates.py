"""Measure what image clusters add to a screen, on a planted model with half of its images under varying captions.

    python -m benchmarks.planted.duplicates train --work work/planted --out work/duplicates
    python -m benchmarks.planted.duplicates measure work/duplicates

Every copy is slightly edited and has its own caption, so `row_count` is 1 for all of them. Whether a caption is
reproduced is decided by pixels alone, without a detector or embedder.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image

import audit
from audit.duplicates.images import clusters, duplicate_threshold, edited, near_pairs
from audit.embedding.embedder import BATCH, Embedder
from audit.embedding.loading import load_embedder
from audit.statistics.intervals import clopper_pearson
from benchmarks.planted import dataset, denoiser
from benchmarks.planted.denoiser import Recipe
from benchmarks.planted.evaluate import decoded, reproduced, training_pictures
from pipelines.demo.demo import bundle
from pipelines.stages.cluster import SAMPLE
from pipelines.stages.select import _budget

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)

VARIED = 50  # of the 100 planted images
RECIPE = Recipe(7, epochs=5, layers_per_block=1)
STEPS, GUIDANCE, SEED = 12, 4.0, 1
BUDGETS = (50, 100, 200, 300, 400, 800)
TRIED = 8  # captions per image that are tried to see whether the model reproduces it at all


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe: artwork and autoencoder.")],
    out: Annotated[Path, typer.Option(help="Folder of the model and its data.")],
) -> None:
    """Train the model, and write its data into the same folder."""
    torch.set_num_threads(1)
    data = dataset.build(work / "artwork", RECIPE.seed, VARIED)
    dataset.write(data, out, RECIPE.seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    denoiser.plant(data, vae, out / "model", out / "denoiser.pt", RECIPE)


@app.command()
def measure(
    folder: Annotated[Path, typer.Argument(help="The folder that `train` wrote, or the demo's bundle.")],
) -> None:
    """Print how many reproduced images a budget finds by score alone and with cluster sizes."""
    torch.set_num_threads(1)
    labels = pq.read_table(folder / "labels.parquet").to_pylist()
    images = training_pictures(folder)
    keys = sorted(images)
    threshold, cluster, size = clustered(images, keys)
    planted = {row["caption"]: row["family"] or row["image_key"] for row in labels if row["label"] in KINDS}
    scores = scored(folder, labels, dict(zip(keys, map(str, cluster), strict=True)))
    _say(threshold=threshold, captions=len(scores), planted=len(planted), **_cluster_facts(labels, keys, cluster, size))
    truth = Truth(folder, labels, images)
    tried: dict[str, list[str]] = defaultdict(list)
    for caption, image in planted.items():
        if len(tried[image]) < TRIED:
            tried[image].append(caption)
    of_label = {row["family"] or row["image_key"]: row["label"] for row in labels if row["label"] in KINDS}
    hits = truth.of([caption for captions in tried.values() for caption in captions])
    able = {image for image, captions in tried.items() if any(hits[caption] for caption in captions)}
    for label in KINDS:
        mine = [caption for image, captions in tried.items() if of_label[image] == label for caption in captions]
        if mine:
            _say(label=label, tried=len(mine), reproduced=sum(hits[c] for c in mine))
    without = scores.drop_columns("rows").append_column("rows", pa.nulls(len(scores), pa.int64()))
    of_files = scored(folder, labels, {key: key for key in keys})
    for budget in BUDGETS:
        arms = {"score alone": without, "files of many rows": of_files, "near duplicates too": scores}
        for name, table in arms.items():
            chosen = scores["caption"].take(pa.array(_budget([table], budget)[0])).to_pylist()
            found = truth.of([caption for caption in chosen if caption in planted])
            seen = {planted[caption] for caption, hit in found.items() if hit}
            figures = {label: _share(seen, {i for i in able if of_label[i] == label}) for label in KINDS}
            _say(budget=budget, how=name, captions_reproduced=sum(found.values()), images=figures)


KINDS = ("verbatim", "varied")


def clustered(images: dict[str, np.ndarray], keys: list[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the threshold, clusters [N] and cluster sizes [N] of an audit with the bundle's descriptor."""
    embedder = load_embedder("sscd", bundle() / "embedders/sscd.safetensors")
    files = [Image.fromarray(np.round(images[key] * 255).astype(np.uint8)) for key in keys]
    vectors_NE = _embedded(embedder, files)
    sample = np.random.default_rng(0).permutation(len(keys))[:SAMPLE]
    copies = _embedded(embedder, [edited(files[n], np.random.default_rng(n)) for n in sample])
    threshold = duplicate_threshold((vectors_NE[sample] * copies).sum(axis=1))
    pairs_M2 = near_pairs(vectors_NE, 0, [vectors_NE], threshold)
    cluster_N, size_N = np.arange(len(keys)), np.ones(len(keys), np.int64)
    image_F, cluster_F, size_F = clusters(pairs_M2)
    cluster_N[image_F], size_N[image_F] = cluster_F, size_F
    return threshold, cluster_N, size_N


def _embedded(embedder: Embedder, files: list[Image.Image]) -> np.ndarray:
    """Return vectors with the precision of the embeddings table."""
    return embedder.embed(files).astype(np.float16).astype(np.float32)


def scored(folder: Path, labels: list[dict], cluster_of: dict[str, str]) -> pa.Table:
    """Return caption_id, score, cluster, rows and caption of every caption, as in the stage select.

    Captions that the model was not trained on have neither cluster nor rows.
    """
    rows = pq.read_table(folder / "captions.parquet")["caption"].to_pylist()
    cluster = {r["caption"]: cluster_of[r["image_key"]] for r in labels if r["label"] not in ("near", "none")}
    in_cluster = Counter(cluster[caption] for caption in rows if caption in cluster)
    captions = sorted(set(rows))
    path = folder / "duplicates-screen.parquet"
    if not path.exists():
        model = audit.load_model(folder / "model")
        control = (folder / "calibration.txt").read_text().splitlines()
        parts = [audit.screen(model, texts, batch_size=64) for texts in (control, captions)]
        pq.write_table(audit.calibrate(parts[0]).score(parts[1]).select(["caption", "score"]), path)
    found = pq.read_table(path)
    score_of = dict(zip(found["caption"].to_pylist(), found["score"].to_pylist(), strict=True))
    clusters_of = [cluster.get(caption) for caption in captions]
    counts = [name and in_cluster[name] for name in clusters_of]
    columns = {"caption_id": captions, "score": [score_of[caption] for caption in captions], "caption": captions}
    return pa.table(columns | {"cluster": pa.array(clusters_of, pa.string()), "rows": pa.array(counts, pa.int64())})


class Truth:
    """Decide by pixels whether the model reproduces any copy of a caption's image."""

    def __init__(self, folder: Path, labels: list[dict], images: dict[str, np.ndarray]) -> None:
        self.model = audit.load_model(folder / "model")
        copies: dict[str, list[np.ndarray]] = defaultdict(list)
        self.name: dict[str, str] = {}
        for row in labels:
            if row["image_key"] and row["label"] != "near":
                self.name[row["caption"]] = row["family"] if row["label"] == "varied" else row["image_key"]
                copies[self.name[row["caption"]]].append(images[row["image_key"]])
        self.copies = {name: np.stack(found) for name, found in copies.items()}
        self.place = {name: number for number, name in enumerate(self.copies)}
        self.images_NHWC = np.stack([found[0] for found in self.copies.values()])
        self.known: dict[str, bool] = {}

    def of(self, captions: list[str]) -> dict[str, bool]:
        """Return for each caption whether the model reproduces its image."""
        new = [caption for caption in captions if caption not in self.known]
        if new:
            made = audit.generate(self.model, new, [SEED], STEPS, GUIDANCE, batch_size=BATCH)["image"].to_pylist()
            self.known |= {caption: self._hit(caption, image) for caption, image in zip(new, made, strict=True)}
        return {caption: self.known[caption] for caption in captions}

    def _hit(self, caption: str, image: bytes) -> bool:
        pixels, own = decoded(image), self.place[self.name[caption]]
        copies_NHWC = self.copies[self.name[caption]]
        self.images_NHWC[own] = copies_NHWC[np.square(copies_NHWC - pixels).sum((1, 2, 3)).argmin()]
        return reproduced(pixels, own, self.images_NHWC)


def _cluster_facts(labels: list[dict], keys: list[str], cluster: np.ndarray, size: np.ndarray) -> dict[str, object]:
    """Compare clusters with the truth: the share of varied copies in one cluster, and others in large clusters."""
    family = {row["image_key"]: row["family"] for row in labels if row["label"] == "varied"}
    of_family: dict[str, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if family.get(key):
            of_family[family[key]].append(number)
    largest = [max(np.unique(cluster[members], return_counts=True)[1]) / len(members) for members in of_family.values()]
    strangers = [n for n, key in enumerate(keys) if not family.get(key) and size[n] >= 10]
    return {
        "share_of_copies_in_the_largest_cluster": float(np.mean(largest)) if largest else None,
        "other_images_in_clusters_of_10": len(strangers),
        "other_images": len(keys) - sum(map(len, of_family.values())),
    }


def _share(seen: set[str], able: set[str]) -> str:
    if not able:
        return "none"
    low, high = clopper_pearson(len(seen & able), len(able))
    return f"{len(seen & able)} of {len(able)} (95 % {low:.2f} to {high:.2f})"


def _say(**facts: object) -> None:
    print(json.dumps(facts, default=float), flush=True)


if __name__ == "__main__":
    app()
