"""Train the models of PlantedBench, find out what they memorized, and measure detectors and mitigation on them."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import typer

from audit.errors import AuditError
from benchmarks.markers import insert
from benchmarks.planted.bench import early, page, plots, screens, steps, truth
from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.model import load
from benchmarks.planted.bench.train import DEVELOPMENT, MODELS, OTHER_FAMILIES, SEALED

app = typer.Typer(add_completion=False, no_args_is_help=True)
PAGE = Path("docs/evidence.md")
WORK, RESULTS = Path("work/bench"), Path("benchmarks/planted/bench/results")
Work = Annotated[Path, typer.Option(help="Folder of the artwork, the models and what is measured on them.")]
Out = Annotated[Path, typer.Option(help="Folder of the results, one JSON file per model.")]
Models = Annotated[list[str], typer.Argument(help=", ".join(MODELS))]
StableDiffusionModels = Annotated[
    list[str], typer.Argument(help=", ".join(name for name in MODELS if name not in OTHER_FAMILIES))
]


@app.callback(help=__doc__)
def use_one_thread() -> None:
    """Run each command on one core: several can run side by side."""
    torch.set_num_threads(1)


@app.command()
def train(
    models: Models,
    work: Work = WORK,
    device: Annotated[str, typer.Option(help="Device on which the denoisers are trained.")] = "cpu",
) -> None:
    """Train models. Each takes 15 to 45 minutes on one core; a second call resumes."""
    for name in models:
        steps.train(name, work, device)


@app.command()
def measure(models: Models, work: Work = WORK) -> None:
    """Generate and screen the captions of trained models. What is there already is kept."""
    for name in models:
        steps.measure(name, work)


@app.command()
def tables(models: Models, work: Work = WORK, out: Out = RESULTS) -> None:
    """Compute the tables and curves of measured models."""
    for name in models:
        try:
            steps.tabulate(name, work, out)
        except AuditError as refused:
            typer.echo(refused, err=True)
            raise typer.Exit(1) from None


@app.command()
def mitigate(
    models: Models,
    work: Work = WORK,
    out: Out = RESULTS,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="METHOD or METHOD@run:MAX_P, which are printed; default: those of the page."),
    ] = None,
) -> None:
    """Measure mitigation methods on measured models."""
    for name in models:
        steps.mitigate(name, work, out, methods or ())


@app.command("early")
def print_early(models: StableDiffusionModels, work: Work = WORK) -> None:
    """Print what the response of the caption inside the UNet finds on measured models."""
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

    failures = steps.run_all(chosen, work, out, processes)
    for model, failure in failures:
        if isinstance(failure, AuditError):
            typer.echo(failure, err=True)
        else:
            typer.echo(f"{model}:", err=True)
            traceback.print_exception(failure)
    if failures:
        raise typer.Exit(1)
    write_page(out, PAGE)


if __name__ == "__main__":
    app()
