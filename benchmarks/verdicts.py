"""Measure the time and peak memory of the stages select and judge, which process all captions.

Scores, rows and image clusters are synthetic. No images are generated, so the cost depends on the number of captions.

python -m benchmarks.verdicts [--captions 1000000 --captions 10000000]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from audit import schema
from audit.record.ledger import Ledger
from benchmarks.spent import watched
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.stages import judge, select
from pipelines.steps.input_rows import BUCKET_ROWS

# Percentage of images that are near duplicates of the previous one.
NEAR = 60


def main(
    captions: Annotated[
        list[int] | None, typer.Option(help="Number of captions. Repeat the option to measure several.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder for the data; by default a temporary folder.")] = None,
) -> None:
    """Print the seconds and the peak memory of both stages."""
    for count in captions or [1_000_000]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            sections = {"model": "none", "captions": "none", "calibration": {"captions": "none"}, "out": work}
            config, ledger = Config.model_validate(sections), Ledger(work)
            run = Run(config, ledger, Manifest.open(ledger, config, {}), Reporter())
            write(ledger, count)
            run.manifest.data.calibration.held_out = 1000
            for stage in (select, judge):
                load, began = os.getloadavg()[0], time.perf_counter()
                with watched() as spent:
                    stage.run(run)
                seconds, name = time.perf_counter() - began, stage.__name__.rpartition(".")[2]
                memory = f"{spent.memory / 2**30:.2f} GiB at most"
                print(f"{count:,} captions: {name} {seconds:.0f} s, {memory}, load {load:.1f}", flush=True)


def write(ledger: Ledger, count: int) -> None:
    """Write captions in parts, rows of which two thirds have an image, and the clusters of these images."""
    parts = -(-count // BUCKET_ROWS)
    for part, some in enumerate(np.array_split(np.arange(count), parts)):
        name, rng = f"{part:05d}", np.random.default_rng(part)
        low = (part << 64) // parts
        heads = np.sort(rng.integers(0, (1 << 64) // parts, len(some), np.uint64)) + np.uint64(low)
        ids = pa.array(
            [f"{head:016x}{number:016x}" for head, number in zip(heads.tolist(), some.tolist(), strict=True)]
        )
        images = pa.array([f"{number:08x}" * 4 for number in rng.permutation(some).tolist()])
        texts = pa.array([f"caption number {number} of a dataset of images" for number in some.tolist()])
        first = np.maximum.accumulate(np.where(rng.integers(0, 100, len(some)) < NEAR, 0, np.arange(len(some))))
        tables = {
            "captions": pa.table([ids, texts, np.ones(len(some), np.int64)], schema=schema.CAPTIONS),
            "rows": rows(ids, images, rng),
            "image_clusters": pa.table(
                [images, images.take(pa.array(first)), np.bincount(first)[first]], schema=schema.IMAGE_CLUSTERS
            ),
            select.SCORED: pa.table(
                {"caption_id": ids, "score": rng.random(len(ids)), "p_unseen": rng.random(len(ids))}
            ),
        }
        for table, content in tables.items():
            ledger.write(table, name, content)


def rows(ids: pa.Array, images: pa.Array, rng: np.random.Generator) -> pa.Table:
    """Return one dataset row per caption, of which two thirds have an image.

    Args:
        ids: The ids of the captions.
        images: The ids of the images, as many as captions.
        rng: The random generator.
    """
    mask = rng.integers(0, 3, len(ids)) == 0
    known = {"caption_id": ids, "image_id": pa.array(images.to_numpy(zero_copy_only=False), pa.string(), mask=mask)}
    known |= {"row": pa.array(np.arange(len(ids)))}
    return pa.table([known.get(f.name, pa.nulls(len(ids), f.type)) for f in schema.ROWS], schema=schema.ROWS)


if __name__ == "__main__":
    typer.run(main)
