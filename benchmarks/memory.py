"""Measure host memory: of a screen of more and more captions, and of several workers that load the same model.

python -m benchmarks.memory screen [--captions 100000] [--detector entropy_single_step]
python -m benchmarks.memory workers [--workers 4] [--dtype float16]

Linux only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import torch
import typer
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import audit
from audit.defaults import DEFAULT_DETECTOR
from benchmarks.architectures import FOLDERS

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
SHARD = 1024  # captions; the default of engine.shard_rows
# Loads a model as a worker does, says so, and waits to be measured.
LOADER = "import sys, audit; model = audit.load_model(sys.argv[1]); print(flush=True); sys.stdin.read()"
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


def screened(model: audit.Model, captions: int, detector: str = DEFAULT_DETECTOR) -> Iterator[tuple[int, float]]:
    """Screen captions shard by shard, and write each shard to a file, as a run does.

    Args:
        model: The model.
        captions: Number of captions.
        detector: Detector to screen with.

    Yields:
        After each shard, the number of captions so far and the resident memory of this process in MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, captions, SHARD):
            stop = min(start + SHARD, captions)
            texts = [f"a picture of the thing number {number}" for number in range(start, stop)]
            pq.write_table(audit.screen(model, texts, detectors=[detector]), Path(folder, f"{start}.parquet"))
            yield stop, memory("self")["Rss"]


def memory(pid: int | str) -> dict[str, float]:
    """Return the memory of a process by kind, in MiB: `Rss`, `Pss`, `Private_Dirty`, `Shared_Clean` and others.

    A page that n processes share counts 1/n in each `Pss`.
    """
    return _sizes(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])


def mapping(file: Path) -> dict[str, float]:
    """Return the memory of this process that is mapped from a file, by kind, in MiB."""
    found: dict[str, float] = {}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if _MAPPING.match(line):
            ours = line.endswith(str(file.resolve()))
        elif ours and line.endswith(" kB"):
            for name, size in _sizes([line]).items():
                found[name] = found.get(name, 0) + size
    return found


def _sizes(lines: Sequence[str]) -> dict[str, float]:
    return {name: int(size.split()[0]) / 1024 for name, size in (line.split(":") for line in lines)}


def workers(folder: Path, number: int) -> list[dict[str, float]]:
    """Load a model in several processes at once, and return the memory of each.

    Args:
        folder: The model.
        number: Number of processes.
    """
    command = [sys.executable, "-c", LOADER, str(folder)]
    loaded = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(number)]
    try:
        for process in loaded:
            assert process.stdout is not None
            process.stdout.readline()
        return [memory(process.pid) for process in loaded]
    finally:
        for process in loaded:
            process.communicate()


def large(folder: Path, dtype: torch.dtype) -> Path:
    """Write a copy of the demo's model whose UNet is wider, about 400 MiB in float32, with random weights.

    Args:
        folder: Where to write it.
        dtype: Dtype of the files.

    Returns:
        The folder of the model.
    """
    pipeline = audit.load_model(FOLDERS["demo"]).pipeline()
    wide = dict(pipeline.unet.config) | {"block_out_channels": (192, 320, 512)}
    pipeline.unet = UNet2DConditionModel.from_config(wide)
    pipeline.to(dtype).save_pretrained(folder)
    return folder


@app.command("screen")
def print_screen(
    captions: Annotated[int, typer.Option(help="Number of captions.")] = 100_000,
    detector: Annotated[str, typer.Option(help="Detector to screen with.")] = DEFAULT_DETECTOR,
) -> None:
    """Print the memory after 1, 2, 4, ... shards of a screen with the demo's model."""
    torch.set_num_threads(1)
    shards = 1
    for at, (done, rss) in enumerate(screened(audit.load_model(FOLDERS["demo"]), captions, detector), 1):
        if at == shards or done == captions:
            print(f"{done:,} captions: {rss:,.0f} MiB", flush=True)
            shards *= 2


@app.command("workers")
def print_workers(
    number: Annotated[int, typer.Option("--workers", help="Number of processes.")] = 4,
    dtype: Annotated[str, typer.Option(help="Dtype of the files; the workers load them in float32.")] = "float32",
) -> None:
    """Print the memory of workers that have loaded the same model."""
    with tempfile.TemporaryDirectory() as folder:
        model = large(Path(folder), getattr(torch, dtype))
        size = sum(file.stat().st_size for file in model.rglob("*.safetensors")) / 2**20
        print(f"weights: {size:,.0f} MiB of {dtype}")
        for loaded in (1, number):
            found = workers(model, loaded)
            total = sum(each["Pss"] for each in found)
            private = total - sum(each["Pss_File"] for each in found)
            print(f"{loaded} workers: {total:,.0f} MiB together, {private / loaded:,.0f} MiB private in each")


if __name__ == "__main__":
    app()
