"""Measure how long the report of a large run takes, and how large it is.

python -m benchmarks.report RUN [--captions 10000] [--side 512]

The run is copied with its selected captions repeated until there are enough, each copy with a family of its own, and
with pictures of random shapes in place of its own, which compress as photographs do.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from PIL import Image

from audit.record.manifest import NAME
from reports.html import render
from reports.record.build import build

# Tables that the record reads by caption; `family` is a caption_id too.
TABLES = ("verdicts", "scores", "rows", "matches", "copied_images", "generations")


def main(
    run: Annotated[Path, typer.Argument(help="A finished run in a local folder.")],
    captions: Annotated[int, typer.Option(min=1, help="Selected captions of the copy.")] = 10_000,
    side: Annotated[int, typer.Option(min=8, help="Pixels per side of its pictures.")] = 512,
) -> None:
    """Print the time and the size."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        copy.mkdir()
        copy.joinpath(NAME).write_bytes((run / NAME).read_bytes())
        _repeat(run, copy, captions, photograph(side))
        begun, used = time.perf_counter(), time.process_time()
        record = build(copy)
        page = render(record)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - used
    found = {"captions": record.selected_count, "cases": len(record.cases), "megabytes": len(page.encode()) / 1e6}
    print(json.dumps(found | {"seconds": seconds, "cpu_seconds": cpu_seconds}))


def photograph(side: int) -> bytes:
    """Return a JPEG with detail at all scales, as photographs have."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((side, side, 3))
    for level in range(2, side.bit_length()):
        noise = Image.fromarray(rng.integers(0, 256, (2**level, 2**level, 3), np.uint8))
        pixels += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), float) / 1.6**level
    pixels = 255 * (pixels - pixels.min()) / np.ptp(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _repeat(run: Path, copy: Path, captions: int, picture: bytes) -> None:
    with duckdb.connect() as connection:
        for table in sorted(path.name for path in run.iterdir() if path.is_dir()):
            parts = f"read_parquet('{run / table}/*.parquet')"
            if not list((run / table).glob("*.parquet")) or table.startswith("embeddings"):
                continue
            found = connection.sql(f"from {parts}").to_arrow_table()
            if table in TABLES:
                times = f"range({-(-captions // _selected(connection, run))}) t(n)"
                renamed = ["caption_id || '-' || n as caption_id"]
                renamed += ["family || '-' || n as family"] if "family" in found.column_names else []
                sql = f"select * exclude (n) replace ({', '.join(renamed)}) from {parts}, {times}"
                found = connection.sql(sql).to_arrow_table()
            if "image" in found.column_names:
                place = found.schema.get_field_index("image")
                found = found.set_column(place, "image", pa.array([picture] * len(found), pa.binary()))
            (copy / table).mkdir()
            pq.write_table(found, copy / table / "00000.parquet")


def _selected(connection: Any, run: Path) -> int:
    sql = f"select count(*) from read_parquet('{run}/verdicts/*.parquet') where verdict <> 'not_selected'"
    return int(connection.sql(sql).fetchall()[0][0])


if __name__ == "__main__":
    typer.run(main)
