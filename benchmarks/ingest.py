"""What it costs to take captions in, with de-duplication and groups: rows a second, and the peak of memory.

A second of a core tells what a busy machine does not: how fast an idle one would be.

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
# Of a hundred rows so many carry a text of their own, and so many another one's in capitals.
DISTINCT, SHOUTED = 75, 5


class Timed(Run):
    """Says how long each step takes."""

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        began = time.perf_counter()
        super().execute(step, shards)
        print(f"  {step.title}: {len(shards)} shards, {time.perf_counter() - began:.1f} s", flush=True)


def main(
    rows: Annotated[
        list[int] | None, typer.Option(help="How many captions; given again, one run after the other.")
    ] = None,
    workers: int = 2,
    form: Annotated[str, typer.Option(help="parquet or csv")] = "parquet",
    folder: Annotated[Path | None, typer.Option(help="Where there is room; a temporary folder if not given.")] = None,
) -> None:
    """Print the seconds of each step, rows a second and the peak of memory of all processes together."""
    for count in rows or [1_000_000]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            write(Path(work), count, form)
            print(f"{count:,} rows, {workers} workers, load {os.getloadavg()[0]:.1f}", flush=True)
            began = time.perf_counter()
            with watched() as spent:
                found = take_in(Path(work), workers, form)
            seconds = time.perf_counter() - began
            rate = f"{count / seconds:,.0f} rows/s ({seconds:.0f} s)"
            cores = f"{count / spent.cpu():,.0f} rows per second of a core"
            print(f"{rate}, {cores}, {spent.memory / 2**30:.2f} GiB at most; {found}", flush=True)


def write(work: Path, count: int, form: str) -> None:
    """Captions of 5 to 16 words, in files of FILE_ROWS rows; the same for every `count` they have in common."""
    words = [f"{mixed(np.array([word], np.uint64))[0]:x}"[: 3 + word % 6] for word in range(WORDS)]
    (work / "captions").mkdir()
    (work / "nulls.txt").write_text("a river\n")
    for number, start in enumerate(range(0, count, FILE_ROWS)):
        row = np.arange(start, min(start + FILE_ROWS, count), dtype=np.uint64)
        draw = mixed(row)
        # A text that is not the row's own is that of any row before.
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
    config = Config.model_validate(
        {
            "model": "none",
            "captions": f"{work}/captions/*.{form}",
            "calibration": {"captions": str(work / "nulls.txt")},
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
