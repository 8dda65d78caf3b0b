"""Train the models of PlantedBench, find out what they memorized, and measure detectors and mitigation on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import torch
import typer

import audit
from audit.embedding.loading import load_embedder
from benchmarks.planted.bench import results, screens, truth
from benchmarks.planted.bench.train import MODELS
from benchmarks.planted.bench.train import train as train_model

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
BUNDLE = Path("pipelines/demo/bundle")
Work = Annotated[Path, typer.Option(help="Folder of the artwork and the models.")]
WORK, RESULTS = Path("work/bench"), Path("benchmarks/planted/bench/results")


@app.command()
def train(
    models: Annotated[list[str], typer.Argument(help=", ".join(MODELS))],
    work: Work = WORK,
) -> None:
    """Train models. Each takes about 15 minutes on one core; a second call resumes."""
    torch.set_num_threads(1)
    for name in models:
        train_model(work / name, work / "artwork", BUNDLE / "model/vae", MODELS[name])


@app.command()
def measure(models: Annotated[list[str], typer.Argument(help=", ".join(MODELS))], work: Work = WORK) -> None:
    """Generate and screen the captions of trained models. What is there already is kept."""
    torch.set_num_threads(1)
    embedder = load_embedder("sscd", BUNDLE / "embedders/sscd.safetensors")
    for name in models:
        folder, model = work / name, audit.load_model(work / name / "model")
        if not (folder / "truth.parquet").exists():
            found, runs = truth.measure(model, folder, embedder)
            pq.write_table(runs, folder / "runs.parquet", compression="zstd")
            pq.write_table(found, folder / "truth.parquet", compression="zstd")
        if not (folder / "screen.parquet").exists():
            pq.write_table(screens.measure(model, folder), folder / "screen.parquet", compression="zstd")


@app.command()
def tables(
    models: Annotated[list[str], typer.Argument(help=", ".join(MODELS))],
    work: Work = WORK,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Compute the tables of measured models, one JSON file each."""
    torch.set_num_threads(1)
    for name in models:
        results.write(results.collect(work / name), out / f"{name}.json")


@app.callback()
def main() -> None:
    """Measure detectors and mitigation on models that memorize to a known degree."""


if __name__ == "__main__":
    app()
