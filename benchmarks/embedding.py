"""Measure the time of the stage embed, which decodes a batch ahead, relative to the same work done serially.

python -m benchmarks.embedding [--images 256] [--side 1024] [--cpus 2] [--device cuda]
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from audit.embedding.embedder import Embedder, embedder_of
from audit.embedding.sscd import Sscd, prepare
from audit.images.decoding import decode
from audit.record.ledger import Ledger, Shard
from benchmarks.paired import ratio
from pipelines.configuration.config import Config
from pipelines.engine.worker import Worker
from pipelines.reading import images
from pipelines.reading.files import find
from pipelines.stages import embed
from pipelines.steps import image_vectors
from pipelines.tables.training_images import IMAGES


def main(
    count: Annotated[int, typer.Option("--images", help="Number of JPEGs.")] = 256,
    side: Annotated[int, typer.Option(help="Their width and height.")] = 1024,
    cpus: Annotated[int, typer.Option(help="CPUs of the worker: threads of torch, and threads that decode.")] = 1,
    device: str = "cpu",
    pairs: int = 5,
) -> None:
    """Print the ratio for SSCD's network with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        worker = _worker(Path(folder), count, side, cpus, device)
        embedder = worker.embedder("sscd")
        shard = Shard("00000", "00000", 0, count)

        def serial() -> None:
            places = worker.ledger.slice(IMAGES, "00000", 0, count)
            contents = list(images.read(places, "image"))
            for start in range(0, count, image_vectors.BATCH):
                embedder.embed([decode(content) for content in contents[start : start + image_vectors.BATCH]])

        found = ratio(serial, lambda: embed._embed(worker, shard), device, pairs)
        print(f"embed, decoding a batch ahead, {count} JPEGs of {side} x {side}, {cpus} CPUs, {device}: {found}")


def _worker(folder: Path, count: int, side: int, cpus: int, device: str) -> Worker:
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            coarse = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((side, side)).save(buffer, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    settings = {"path": str(folder / "0.tar")}
    rest = {"model": "none", "captions": "none", "calibration": {"captions": "none"}, "out": str(folder / "run")}
    worker = Worker(Config.model_validate({"images": settings, "engine": {"cpus_per_worker": cpus}, **rest}))
    worker.device = device
    worker._embedders["sscd"] = _sscd(device)
    [file] = find(str(folder / "0.tar"), "images")
    Ledger(worker.config.out).write(IMAGES, "00000", images.index(file, "image")[0])
    torch.set_num_threads(cpus)
    return worker


def _sscd(device: str) -> Embedder:
    network = Sscd().eval().to(device)
    return embedder_of("sscd", {}, "", lambda image: prepare(image, "square_320"), network, device)


if __name__ == "__main__":
    typer.run(main)
