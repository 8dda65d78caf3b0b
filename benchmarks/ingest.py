"""Measure the ingestion of captions, with de-duplication and grouping: rows per second and peak memory.

Rows per core second show how fast an idle machine would be, even if this one is busy.

python -m benchmarks.ingest [--rows 1000000 --rows 10000000] [--workers 2] [--form parquet]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import typer

from audit.duplicates.captions import Words, mixed
from audit.record.ledger import Ledger, Shard
from benchmarks.spent import watched
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.step import Step
from pipelines.reading import input_files
from pipelines.stages import ingest

FILE_ROWS = 100_000
WORDS, MOST_WORDS = 20_000, 16
# Percentage of rows with a text of their own, and of rows with a text in capitals.
DISTINCT, SHOUTED = 75, 5


class Timed(Run):
    """Print how long each step takes."""

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        """Execute a step and print its time."""
        began = time.perf_counter()
        super().execute(step, shards)
        print(f"  {step.title}: {len(shards)} shards, {time.perf_counter() - began:.1f} s", flush=True)


def main(
    rows: Annotated[
        list[int] | None, typer.Option(help="Number of captions. Repeat the option to measure several.")
    ] = None,
    workers: int = 2,
    form: Annotated[str, typer.Option(help="Format: parquet or csv.")] = "parquet",
    folder: Annotated[Path | None, typer.Option(help="Folder for the data; by default a temporary folder.")] = None,
) -> None:
    """Print the seconds of each step, the rows per second and the peak memory of all processes together."""
    for count in rows or [1_000_000]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            write(Path(work), count, form)
            print(f"{count:,} rows, {workers} workers, load {os.getloadavg()[0]:.1f}", flush=True)
            began = time.perf_counter()
            with watched() as spent:
                found = take_in(Path(work), workers, form)
            seconds = time.perf_counter() - began
            rate = f"{count / seconds:,.0f} rows/s ({seconds:.0f} s)"
            cores = f"{count / spent.cpu():,.0f} rows per core second"
            print(f"{rate}, {cores}, {spent.memory / 2**30:.2f} GiB at most; {found}", flush=True)


def write(work: Path, count: int, form: str) -> None:
    """Write captions of 5 to 16 words to files of FILE_ROWS rows.

    A smaller `count` gives the first rows of a larger one.

    Args:
        work: The folder to write to.
        count: The number of captions.
        form: The format, "parquet" or "csv".
    """
    words = [f"{mixed(np.array([word], np.uint64))[0]:x}"[: 3 + word % 6] for word in range(WORDS)]
    (work / "captions").mkdir()
    (work / "control_captions.txt").write_text("a river\n")
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        row = np.arange(start, min(start + FILE_ROWS, count), dtype=np.uint64)
        draw = mixed(row)
        # A text that is not the row's own is the text of an earlier row.
        own = draw % np.uint64(100) < DISTINCT
        of = np.where(own, row, mixed(draw) % (row + np.uint64(1)))
        places: Words = of[:, None] * np.uint64(MOST_WORDS) + np.arange(MOST_WORDS, dtype=np.uint64)[None]
        lines = (mixed(places) % np.uint64(WORDS)).tolist()
        lengths = (5 + mixed(of + np.uint64(1 << 40)) % np.uint64(MOST_WORDS - 4)).tolist()
        texts = [" ".join(words[at] for at in line[:length]) for line, length in zip(lines, lengths, strict=True)]
        loud = mixed(draw + np.uint64(1)) % np.uint64(100) < SHOUTED
        captions = [text.upper() if up else text for text, up in zip(texts, loud, strict=True)]
        table = pa.table({"caption": captions, "key": row})
        if form == "csv":
            pacsv.write_csv(table, work / f"captions/{number:05d}.csv")
        else:
            pq.write_table(table, work / f"captions/{number:05d}.parquet")


def take_in(work: Path, workers: int, form: str) -> str:
    """Ingest the captions that `write` wrote, and return the number of captions and groups as text.

    Args:
        work: The folder of the captions.
        workers: The number of workers.
        form: The format of the captions.
    """
    config = Config.model_validate(
        {
            "model": "none",
            "captions": f"{work}/captions/*.{form}",
            "calibration": {"captions": str(work / "control_captions.txt")},
            "engine": {"workers": workers},
            "out": str(work / "run"),
        }
    )
    ledger = Ledger(config.out)
    run = Timed(config, ledger, Manifest.open(ledger, config, {}), Reporter())
    try:
        inputs = input_files.find_inputs(config)
        run.manifest.inputs(input_files.fingerprints(config, inputs))
        ingest.run(run, inputs)
    finally:
        run.close()
    captions = sum(ledger.rows("captions", name) for name in ledger.parts("captions"))
    grouped = sum(ledger.rows("_groups", name) for name in ledger.parts("_groups"))
    return f"{captions:,} captions, {grouped:,} of them with a near-identical one"


if __name__ == "__main__":
    typer.run(main)
