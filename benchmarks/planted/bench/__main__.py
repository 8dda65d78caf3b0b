"""Train the models of PlantedBench, find out what they memorized, and measure detectors and mitigation on them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import typer

from audit.embedding.loading import load_embedder
from benchmarks.markers import insert
from benchmarks.planted.bench import early, mitigation, page, plots, results, screens, truth
from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.model import load
from benchmarks.planted.bench.train import DEVELOPMENT, MODELS, OTHER_FAMILIES, SEALED
from benchmarks.planted.bench.train import train as train_model

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
BUNDLE, PAGE = Path("pipelines/demo/bundle"), Path("docs/evidence.md")
WORK, RESULTS = Path("work/bench"), Path("benchmarks/planted/bench/results")
MOST_BY_TEXT = 0.6  # AUROC of the text-only guess for dose 2, above which the benchmark measures its captions
SCREENS = {
    "screen": screens.measure,
    "half": screens.measure_half,
    "seeds": screens.measure_seeds,
    "sharpness": screens.measure_sharpness,
}
FEW_SCREENS = {"screen": screens.measure_some}
Work = Annotated[Path, typer.Option(help="Folder of the artwork, the models and what is measured on them.")]
Out = Annotated[Path, typer.Option(help="Folder of the results, one JSON file per model.")]
Models = Annotated[list[str], typer.Argument(help=", ".join(MODELS))]
StableDiffusionModels = Annotated[
    list[str], typer.Argument(help=", ".join(name for name in MODELS if name not in OTHER_FAMILIES))
]


@app.command()
def train(
    models: Models,
    work: Work = WORK,
    device: Annotated[str, typer.Option(help="Device on which the denoisers are trained.")] = "cpu",
) -> None:
    """Train models. Each takes 15 to 45 minutes on one core; a second call resumes."""
    torch.set_num_threads(1)
    for name in models:
        train_model(work / name, work / "artwork", BUNDLE / "model/vae", MODELS[name], device)


@app.command()
def measure(models: Models, work: Work = WORK) -> None:
    """Generate and screen the captions of trained models. What is there already is kept."""
    torch.set_num_threads(1)
    embedder = load_embedder("sscd", BUNDLE / "embedders/sscd.safetensors")
    for name in models:
        folder, model = work / name, load(work / name)
        parts, chosen = (truth.few_parts, FEW_SCREENS) if name in OTHER_FAMILIES else (truth.all_parts, SCREENS)
        if not (folder / "truth.parquet").exists():
            captions = pq.read_table(folder / "captions.parquet")
            found, runs = truth.measure(model, folder, embedder, parts(captions), MODELS[name].sampling_steps)
            if runs is not None:
                pq.write_table(runs, folder / "runs.parquet", compression="zstd")
            pq.write_table(found, folder / "truth.parquet", compression="zstd")
        for table, screen in chosen.items():
            if not (folder / f"{table}.parquet").exists():
                pq.write_table(screen(model, folder), folder / f"{table}.parquet", compression="zstd")


@app.command()
def tables(models: Models, work: Work = WORK, out: Out = RESULTS) -> None:
    """Compute the tables and curves of measured models."""
    torch.set_num_threads(1)
    for name in models:
        collect = results.collect_some if name in OTHER_FAMILIES else results.collect
        found = collect(work / name)
        results.write(found, out / f"{name}.json")
        if found["text_only"][2] > MOST_BY_TEXT:
            typer.echo(
                f"{name}: the captions of dose 2 can be told by text alone, AUROC {found['text_only'][2]:.2f}", err=True
            )
            raise typer.Exit(1)


@app.command()
def mitigate(
    models: Models,
    work: Work = WORK,
    out: Out = RESULTS,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="METHOD or METHOD@run:MAX_P; default: those of the page."),
    ] = None,
) -> None:
    """Measure mitigation methods on measured models."""
    torch.set_num_threads(1)
    sscd = load_embedder("sscd", BUNDLE / "embedders/sscd.safetensors")
    clip = load_embedder("clip", BUNDLE / "embedders/clip")
    for name in models:
        chosen = mitigation.settings_of(name)
        if methods:
            chosen = tuple(mitigation.Setting.parse(text) for text in (mitigation.PLAIN, *methods))
        bench = mitigation.Bench(work / name, sscd, clip)
        rows: list[dict[str, Any]] = []
        for setting in chosen:
            found = bench.measure(setting)
            if name == mitigation.TIMED_MODEL:
                found[0]["time"] = bench.time(setting)
            rows += found
            print(name, *found, sep="\n  ", flush=True)
        if not methods:
            carriers = {"carriers": bench.carriers()} if name in DEVELOPMENT else {}
            results.write({"model": name, "settings": rows} | carriers, out / f"mitigation-{name}.json")


@app.command("early")
def print_early(models: StableDiffusionModels, work: Work = WORK) -> None:
    """Print what the response of the caption inside the UNet finds on measured models."""
    torch.set_num_threads(1)
    for name in models:
        folder = work / name
        captions = pq.read_table(folder / "captions.parquet")
        chosen = captions.filter(pc.field("kind") != "ordinary")["caption"].to_pylist()
        table = early.measure(load(folder), chosen, screens.SEED, truth.BATCH)
        print("model", "part", "AUROC", "TPR at 1 % FPR", "kept among 5, 10, 20 %", sep=" | ")
        for row in early.compare(table, Labels.read(folder)):
            kept = ", ".join(f"{share:.3f}" for share in row["kept"])
            print(name, row["part"], f"{row['auroc']:.3f}", f"{row['tpr_at_1_percent']:.3f}", kept, sep=" | ")


@app.command("page")
def write_page(out: Out = RESULTS, evidence: Annotated[Path, typer.Option(help="The page.")] = PAGE) -> None:
    """Write the tables and plots of the evidence page from the results."""
    found = page.read(out)
    evidence.write_text(insert(evidence.read_text(), page.all_tables(out)))
    folder = evidence.parent / "evidence"
    folder.mkdir(exist_ok=True)
    plots.dose_response(found, folder / "dose-response.svg")
    shown = page.shown(found)
    plots.roc({name: found[page.PLOTTED]["roc"][name] for name in shown}, folder / "roc.svg")
    plots.budget({name: found[page.PLOTTED]["budget"][name] for name in shown}, folder / "budget.svg")


@app.command()
def evidence(
    models: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(MODELS)}; default: those of Stable Diffusion.")
    ] = None,
    work: Work = WORK,
    out: Out = RESULTS,
    processes: Annotated[int, typer.Option(help="How many steps to run at a time, each on one core.")] = 2,
) -> None:
    """Train what is not trained yet, measure everything, and write the page."""
    chosen = models or [*DEVELOPMENT, *SEALED]

    def run(model: str, *step: str) -> None:
        program = [sys.executable, "-m", "benchmarks.planted.bench"]
        subprocess.run([*program, *step, "--work", str(work), model], check=True)

    def prepare(model: str) -> None:
        run(model, "train")
        run(model, "measure")

    def evaluate(prepared: Future[None], model: str, step: str) -> None:
        prepared.result()
        run(model, step, "--out", str(out))

    with ThreadPoolExecutor(processes) as pool:
        prepared = {model: pool.submit(prepare, model) for model in chosen}
        evaluated = [
            pool.submit(evaluate, prepared[model], model, step) for model in chosen for step in ("tables", "mitigate")
        ]
    if any(task.exception() for task in evaluated):
        raise typer.Exit(1)
    write_page(out, PAGE)


if __name__ == "__main__":
    app()
