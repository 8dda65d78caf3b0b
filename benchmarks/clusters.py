"""Measure the cost of finding near duplicates by exact comparison and by cells, and what the cells miss.

A tenth of the vectors are copies of others, with a cosine similarity of 0.9 to 0.99. The variance of the vectors falls
off as a power of the rank of their directions, as with real embedders. This is harder than round clusters, whose copies
share a cell.

python -m benchmarks.clusters [--images 20000 --images 100000] [--workers 1]
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
from audit.duplicates import cells
from audit.record.ledger import Ledger
from benchmarks.ingest import Timed
from benchmarks.spent import watched
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.manifest import Manifest, new
from pipelines.stages import cluster
from pipelines.tables import embeddings

NAME, WIDTH, THRESHOLD = "sscd", 512, 0.9
FALL, COPIED, ROWS = 0.5, 0.1, 1024


def main(
    images: Annotated[
        list[int] | None, typer.Option(help="Number of images. Repeat the option to measure several.")
    ] = None,
    workers: int = 1,
    exact: Annotated[bool, typer.Option(help="Also compare all images with each other.")] = True,
    popular: Annotated[int, typer.Option(help="Number of additional images that are copies of one picture.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Folder for the data; by default a temporary folder.")] = None,
) -> None:
    """Print the seconds of both methods, the share of planted pairs in one cluster, and the run's own recall."""
    for count in images or [20_000, 100_000]:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            vectors_NE, planted_M2 = planted(count, popular)
            _cells(vectors_NE, planted_M2)
            for kind in ("exact", "ivf") if exact else ("ivf",):
                print(f"{count + popular:,} images, {kind}, load {os.getloadavg()[0]:.1f}", flush=True)
                _print(Path(work, kind), kind, workers, vectors_NE, planted_M2)


def planted(count: int, popular: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Generate vectors, some of which are copies of others.

    Args:
        count: The number of vectors.
        popular: The number of additional vectors, all copies of the first.
        seed: The seed.

    Returns:
        The vectors [N, E] as float16, and the pairs of a copy and its original [M, 2].
    """
    rng = np.random.default_rng(seed)
    scale_E = np.arange(1, WIDTH + 1) ** -FALL
    copies = int(count * COPIED) + popular
    of_M = np.append(rng.integers(count + popular - copies, size=copies - popular), np.zeros(popular, np.int64))

    def drawn(rows: int) -> np.ndarray:
        return (rng.standard_normal((rows, WIDTH), np.float32) * scale_E).astype(np.float32)

    own_NE = _unit(drawn(count + popular - copies))
    aside_ME = drawn(copies)
    aside_ME -= (aside_ME * own_NE[of_M]).sum(axis=1, keepdims=True) * own_NE[of_M]
    cosine_M1 = rng.uniform(THRESHOLD, 0.99, size=(copies, 1))
    copies_ME = cosine_M1 * own_NE[of_M] + (1 - cosine_M1**2) ** 0.5 * _unit(aside_ME)
    order = rng.permutation(count + popular)
    place = np.argsort(order)
    pairs_M2 = np.stack([place[of_M], place[len(own_NE) :]], axis=1)
    return np.concatenate([own_NE, copies_ME]).astype(np.float16)[order], pairs_M2


def _cells(vectors_NE: np.ndarray, planted_M2: np.ndarray) -> None:
    """Print what more cells per image would find, and the cost of comparing relative to cells of equal size."""
    images = len(vectors_NE)
    count = cells.cells_for(images)
    sample_N = cells.drawn(np.arange(images), images, cells.PER_CELL * count, 0)
    centres_KE = cells.learned(vectors_NE[sample_N], count, 0)
    cell_NL = np.concatenate(
        [cells.assigned(vectors_NE[at : at + ROWS], centres_KE, 6) for at in range(0, images, ROWS)]
    )
    same_MLL = cell_NL[planted_M2[:, 0]][:, :, None] == cell_NL[planted_M2[:, 1]][:, None]
    shares = [f"{each}: {same_MLL[:, :each, :each].any(axis=(1, 2)).mean():.3f}" for each in range(1, 7)]
    sizes = np.bincount(cell_NL[:, : cells.EACH].ravel(), minlength=count).astype(float)
    uneven = (sizes**2).mean() / sizes.mean() ** 2
    print(f"{images:,} images, {count:,} cells, {uneven:.2f} times the cost of equal cells; planted pairs in a common")
    print(f"cell, by cells per image: {', '.join(shares)}", flush=True)


def _print(out: Path, kind: str, workers: int, vectors_NE: np.ndarray, planted_M2: np.ndarray) -> None:
    ledger = Ledger(str(out))
    for number, start in enumerate(range(0, len(vectors_NE), ROWS)):
        ledger.write(embeddings.table(NAME), f"{number:05d}", _table(start, vectors_NE[start : start + ROWS]))
    settings = {
        "images": {"path": "none"},
        "confirm": {"sscd": {"weights": "none", "min_similarity_duplicate": THRESHOLD}},
        "index": {"type": kind},
        "engine": {"workers": workers},
        "out": str(out),
    }
    config = Config.model_validate(
        {"model": "none", "captions": "none", "calibration": {"captions": "none"}, **settings}
    )
    run = Timed(config, ledger, Manifest(ledger, new(config, {})), Reporter())
    run.workers()
    began = time.perf_counter()
    try:
        with watched() as spent:
            cluster.run(run)
    finally:
        run.close()
    seconds = time.perf_counter() - began
    named = ledger.read("image_clusters")["cluster"].to_numpy()
    together = (named[planted_M2[:, 0]] == named[planted_M2[:, 1]]).mean()
    found = f"{together:.4f} of {len(planted_M2):,} planted pairs; {run.manifest.data.clusters}"
    print(
        f"{kind}: {seconds:.1f} s, {spent.cpu():.0f} core seconds, {spent.memory / 2**30:.2f} GiB at most; {found}",
        flush=True,
    )


def _table(start: int, vectors_NE: np.ndarray) -> pa.Table:
    ids = pa.array([f"{row:032x}" for row in range(start, start + len(vectors_NE))])
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_NE.ravel()), WIDTH)
    rows = pa.array(range(len(ids)), pa.int64())
    places = {"image_id": ids, "file": pa.repeat("f", len(ids)), "row": rows, "key": ids, "sha256": ids}
    return pa.table(places | {"vector": vector.cast(schema.embeddings(WIDTH).field("vector").type)})


def _unit(vectors_NE: np.ndarray) -> np.ndarray:
    return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


if __name__ == "__main__":
    typer.run(main)
