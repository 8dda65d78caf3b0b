"""Run the steps that take a model of PlantedBench from nothing to its results, one model or several at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from audit.embedding.loading import load_embedder
from audit.errors import AuditError
from benchmarks.planted.bench import mitigation, results, screens, truth
from benchmarks.planted.bench.model import load
from benchmarks.planted.bench.train import MODELS, ONE_PER_ENCODER, OTHER_FAMILIES
from benchmarks.planted.bench.train import train as train_model

BUNDLE = Path("pipelines/demo/bundle")
MOST_BY_TEXT = 0.6  # AUROC of the text-only guess for dose 2, above which the benchmark measures its captions
SCREEN = {"screen": screens.measure}
SCREENS = SCREEN | {
    "half": screens.measure_half,
    "seeds": screens.measure_seeds,
    "sharpness": screens.measure_sharpness,
}
FEW_SCREENS = {"screen": screens.measure_some}
# Memory of freed tensors is kept, in huge pages. glibc would return it to the system and get it back page by page in
# every layer: an eighth of the time of a forward. glibc reads this when a process starts.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def train(name: str, work: Path, device: str = "cpu") -> None:
    """Train a model, or resume its training.

    Args:
        name: The name of the model.
        work: The folder of artwork and models.
        device: The device on which its denoiser is trained.
    """
    train_model(work / name, work / "artwork", BUNDLE / "model/vae", MODELS[name], device)


def measure(name: str, work: Path) -> None:
    """Generate and screen the captions of a trained model. What is there already is kept."""
    embedder = load_embedder("sscd", BUNDLE / "embedders/sscd.safetensors")
    folder, model = work / name, load(work / name)
    parts, chosen = truth.all_parts, SCREENS if name in ONE_PER_ENCODER else SCREEN
    if name in OTHER_FAMILIES:
        parts, chosen = truth.few_parts, FEW_SCREENS
    if not (folder / "truth.parquet").exists():
        captions = pq.read_table(folder / "captions.parquet")
        found, runs = truth.measure(model, folder, embedder, parts(captions), MODELS[name].sampling_steps)
        if runs is not None:
            pq.write_table(runs, folder / "runs.parquet", compression="zstd")
        pq.write_table(found, folder / "truth.parquet", compression="zstd")
    for table, screen in chosen.items():
        if not (folder / f"{table}.parquet").exists():
            pq.write_table(screen(model, folder), folder / f"{table}.parquet", compression="zstd")


def tabulate(name: str, work: Path, out: Path) -> None:
    """Compute the tables and curves of a measured model.

    Args:
        name: The name of the model.
        work: The folder of the models.
        out: The folder of the results.

    Raises:
        AuditError: Text alone tells captions of dose 2 from captions never trained on.
    """
    found = (results.collect_some if name in OTHER_FAMILIES else results.collect)(work / name)
    results.write(found, out / f"{name}.json")
    if found["text_only"][2] > MOST_BY_TEXT:
        what = f"text alone tells captions of dose 2 from captions never trained on: AUROC {found['text_only'][2]:.2f}"
        raise AuditError(what, where=name, hint=f"At most {MOST_BY_TEXT} is accepted: give the recipe another seed.")


def mitigate(name: str, work: Path, out: Path, methods: Sequence[str] = ()) -> None:
    """Measure mitigation methods on a measured model, and print each.

    Args:
        name: The name of the model.
        work: The folder of the models.
        out: The folder of the results.
        methods: METHOD or METHOD@run:MAX_P; nothing is written for them. By default, those of the page.
    """
    chosen = mitigation.settings_of(name)
    if methods:
        chosen = tuple(mitigation.Setting.parse(text) for text in (mitigation.PLAIN, *methods))
    sscd = load_embedder("sscd", BUNDLE / "embedders/sscd.safetensors")
    bench = mitigation.Bench(work / name, sscd, load_embedder("clip", BUNDLE / "embedders/clip"))
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        found = bench.measure(setting)
        if name == mitigation.TIMED_MODEL and setting in mitigation.TIMED_SETTINGS:
            found[0]["time"] = bench.time(setting)
        rows += found
        print(name, *found, sep="\n  ", flush=True)
    if not methods:
        carriers = {"carriers": bench.carriers()} if name in ONE_PER_ENCODER else {}
        results.write({"model": name, "settings": rows} | carriers, out / f"mitigation-{name}.json")


def run_all(names: Sequence[str], work: Path, out: Path, processes: int) -> list[tuple[str, BaseException]]:
    """Run all steps of models, several at a time, each on one core.

    Args:
        names: The names of the models.
        work: The folder of artwork and models.
        out: The folder of the results.
        processes: How many steps to run at a time.

    Returns:
        The models of which a step failed, each with its exception.
    """
    os.environ |= ALLOCATOR
    later: tuple[Callable[[str, Path, Path], None], ...] = (mitigate, tabulate)  # the shorter one last
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        prepared: dict[Future[None], str] = {pool.submit(_prepare, name, work): name for name in names}
        started = dict(prepared)
        for done in as_completed(prepared):
            if not done.exception():
                started |= {pool.submit(step, prepared[done], work, out): prepared[done] for step in later}
    return [(name, failure) for step, name in started.items() if (failure := step.exception())]


def _prepare(name: str, work: Path) -> None:
    train(name, work)
    measure(name, work)
