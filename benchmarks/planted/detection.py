"""Measure how well each detector finds what planted models memorized (`docs/evidence.md` has the figures).

    python -m benchmarks.planted.detection train seed-3-frozen-shallow --work work/planted --out work/variants
    python -m benchmarks.planted.detection see work/variants/seed-3-frozen-shallow --out work/seen
    python -m benchmarks.planted.detection score work/seen/*

Every variant has different planted images and captions. All use the autoencoder of seed 0, which no detector examines.
Positives are the verbatim captions that the model reproduces, by pixels. Negatives are the captions with label none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import typer
from diffusers import AutoencoderKL
from rich.console import Console
from rich.table import Table

import audit
from audit.detectors import RUN, SCORES, SCREEN
from audit.statistics.detection_rates import auroc, tpr_at
from benchmarks.planted import dataset, denoiser
from benchmarks.planted.denoiser import Recipe
from benchmarks.planted.evaluate import decoded, reproduced, training_pictures

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)

# Only the last variant and the shipped model were used to make choices (docs/evidence.md lists them).
VARIANTS = {
    "seed-1": Recipe(1, epochs=5),
    "seed-2-shallow": Recipe(2, epochs=5, layers_per_block=1),
    "seed-3-frozen-shallow": Recipe(3, epochs=5, layers_per_block=1, frozen=True),
    "seed-4-frozen": Recipe(4, epochs=5, frozen=True),
    "seed-5-shallow": Recipe(5, epochs=5, layers_per_block=1),
    "seed-6-frozen-shallow": Recipe(6, epochs=5, layers_per_block=1, frozen=True),
}
STEPS, GUIDANCE, SEED, BATCH = 12, 4.0, 1, 64
NONE, CONTROL = 300, 700  # captions that are generated completely, in addition to all captions with label verbatim
FOUR = (0, 1, 2, 3)
ONE_SEED = tuple(name for name in SCREEN if name != "seed_agreement")
RUNS = ("entropy_trajectory", "noise_magnitude_mean", "trajectory_profile", "update_norm_profile", "score_difference")


@app.command()
def train(
    variant: Annotated[str, typer.Argument(help=", ".join(VARIANTS))],
    work: Annotated[Path, typer.Option(help="Folder of the planted recipe: artwork and autoencoder.")],
    out: Annotated[Path, typer.Option(help="Folder of the variants.")],
) -> None:
    """Train one variant, and write its data into the same folder."""
    torch.set_num_threads(1)
    recipe = VARIANTS[variant]
    data = dataset.build(work / "artwork", recipe.seed)
    dataset.write(data, out / variant, recipe.seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    denoiser.plant(data, vae, out / variant / "model", out / variant / "denoiser.pt", recipe)


@app.command()
def see(
    folders: Annotated[list[Path], typer.Argument(help="Folders of variants, or the demo's bundle.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables.")],
    seeds: Annotated[list[int], typer.Option(help="Seeds of the screen.")] = [0],  # noqa: B006
) -> None:
    """Write what all detectors measure on variants (`truth`, `screen`, `runs`, `seeds`) and on control captions."""
    torch.set_num_threads(1)
    for folder in folders:
        tables = _seen(audit.load_model(folder / "model"), folder, seeds)
        target = out / (folder.name if folder.name != "bundle" else "seed-0")
        target.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            pq.write_table(table, target / f"{name}.parquet", compression="zstd")
        print(target, {name: len(table) for name, table in tables.items()}, flush=True)


def _seen(model: audit.Model, folder: Path, seeds: list[int]) -> dict[str, pa.Table]:
    labels = pq.read_table(folder / "labels.parquet")
    control = (folder / "calibration.txt").read_text().splitlines()
    of_label = {label: labels.filter(pc.field("label") == label) for label in ("verbatim", "none", "near", "ordinary")}
    planted, unseen = (of_label[label]["caption"].to_pylist() for label in ("verbatim", "none"))
    images = training_pictures(folder)
    runs = {
        "runs": planted + _some(unseen, NONE),
        "control_runs": _some(control, CONTROL),
    }
    tables = {
        name: audit.generate(model, captions, [SEED], STEPS, GUIDANCE, RUNS, batch_size=BATCH)
        for name, captions in runs.items()
    }
    keys = sorted(images)
    pixels_NHWC = np.stack([images[key] for key in keys])
    own = dict(zip(planted, of_label["verbatim"]["image_key"].to_pylist(), strict=True))
    made = dict(zip(tables["runs"]["caption"].to_pylist(), tables["runs"]["image"].to_pylist(), strict=True))
    hits = [reproduced(decoded(made[caption]), keys.index(own[caption]), pixels_NHWC) for caption in planted]
    truth = {"caption": planted + unseen, "reproduced": [*hits, *[False] * len(unseen)]}
    others = _some(of_label["near"]["caption"].to_pylist(), 100) + _some(
        of_label["ordinary"]["caption"].to_pylist(), 300
    )
    return {
        "truth": pa.table(truth | {"planted": [True] * len(planted) + [False] * len(unseen)}),
        "screen": audit.screen(model, planted + unseen + others, seeds, ONE_SEED, BATCH),
        "control_screen": audit.screen(model, control, seeds, ONE_SEED, BATCH),
        "seeds": audit.screen(model, runs["runs"], FOUR, ("seed_agreement",), BATCH),
        "control_seeds": audit.screen(model, runs["control_runs"], FOUR, ("seed_agreement",), BATCH),
        "runs": tables["runs"].drop_columns(["image"]),
        "control_runs": tables["control_runs"].drop_columns(["image"]),
    }


def _some(captions: list[str], count: int) -> list[str]:
    order = np.random.default_rng(0).permutation(len(captions))
    return [captions[i] for i in order[:count]]


@app.command()
def score(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `see` wrote.")],
    out: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
) -> None:
    """Print each detector's AUROC and its TPR at 1 % FPR on each variant."""
    figures = {folder.name: rates(folder) for folder in folders}
    table = Table("detector", *figures, box=None, header_style="bold")
    for detector in [*SCORES, ORACLE]:
        table.add_row(detector, *("{auroc:.3f} {tpr:.2f}".format(**found[detector]) for found in figures.values()))
    Console().print(table)
    if out:
        out.write_text(json.dumps(figures, indent=1) + "\n")


ORACLE = "the best single layer, chosen afterwards"


def rates(folder: Path) -> dict[str, dict[str, float]]:
    """Return the AUROC and the TPR at 1 % FPR of each detector."""
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    positives = {row["caption"] for row in truth if row["reproduced"]}
    negatives = {row["caption"] for row in truth if not row["planted"]}
    kinds = ("screen", "runs", "seeds")
    tables = {name: pq.read_table(folder / f"{name}.parquet") for kind in kinds for name in (kind, f"control_{kind}")}
    found = {}
    for detector in SCORES:
        table = "runs" if detector in RUN else "seeds" if detector == "seed_agreement" else "screen"
        scored = audit.calibrate(tables[f"control_{table}"], detector).score(tables[table])
        score_of = dict(zip(scored["caption"].to_pylist(), scored["score"].to_pylist(), strict=True))
        positive = [score_of[caption] for caption in positives]
        negative = [score_of[caption] for caption in negatives if caption in score_of]
        found[detector] = _figures(positive, negative)
    rows = {row["caption"]: row for row in tables["screen"].to_pylist()}
    own, none = ([rows[caption] for caption in captions if caption in rows] for captions in (positives, negatives))
    singles = [
        _figures(*([sign * row[feature][layer] for row in kind] for kind in (own, none)))
        for feature in ("layer_entropy", "layer_bos")
        for layer in range(len(own[0]["layer_entropy"]))
        for sign in (1, -1)
    ]
    found[ORACLE] = {name: max(single[name] for single in singles) for name in ("auroc", "tpr")}
    return found


def _figures(positive: list[float], negative: list[float]) -> dict[str, float]:
    return {"auroc": auroc(positive, negative), "tpr": tpr_at(0.01, positive, negative)}


if __name__ == "__main__":
    app()
