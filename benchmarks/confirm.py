"""Measure the cost of confirming: the exact search relative to the matrix product behind it, and its memory.

python -m benchmarks.confirm [--images 5_000_000 --rows 16384 --pairs 1]
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer

from audit import schema
from audit.record.ledger import Ledger
from audit.search.exact import nearest, vectors_of
from benchmarks.paired import ratio
from pipelines.steps.image_search import NEIGHBOURS
from pipelines.tables import embeddings

NAME = "sscd"


def main(
    images: int = 200_000,
    queries: int = 1024,
    width: int = 512,
    rows: Annotated[int, typer.Option(help="Rows per shard.")] = 1024,
    pairs: int = 5,
    folder: Annotated[Path | None, typer.Option(help="Folder for the vectors, which are deleted afterwards.")] = None,
    threads: int = 1,
) -> None:
    """Print the time of the search relative to a matrix product and to `faiss.knn` over the same shards."""
    import faiss

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        ledger = Ledger(work)
        for number, start in enumerate(range(0, images, rows)):
            ledger.write(embeddings.table(NAME), f"{number:05d}", _vectors(start, min(rows, images - start), width))
        query_QE = vectors_of(_vectors(images, queries, width)["vector"]).astype(np.float32)
        before = _resident()

        def found() -> Any:
            return nearest(query_QE, embeddings.embedded(ledger, embeddings.table(NAME)), NEIGHBOURS)

        began = time.perf_counter()
        found()
        seconds = time.perf_counter() - began
        print(f"{images:,} images, {queries:,} queries: {seconds:.1f} s, {images * queries / seconds:.3g} pairs/s")
        print(f"peak memory {_resident():,.0f} MiB, {before:,.0f} MiB before the search", flush=True)
        shards = [part.astype(np.float32) for _, part in zip(range(32), _blocks(ledger), strict=False)]

        def same() -> Any:
            parts = zip(range(len(shards)), embeddings.embedded(ledger, embeddings.table(NAME)), strict=False)
            return nearest(query_QE, (part for _, part in parts), NEIGHBOURS)

        plain = {
            "a matrix product": lambda: [query_QE @ part.T for part in shards],
            "faiss.knn": lambda: [
                faiss.knn(query_QE, part, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT) for part in shards
            ],
        }
        for name, run in plain.items():
            print(
                f"search, relative to {name} of {len(shards)} shards in memory: {ratio(run, same, 'cpu', pairs)}",
                flush=True,
            )


def _blocks(ledger: Ledger) -> Any:
    return (vectors for _, vectors in embeddings.embedded(ledger, embeddings.table(NAME)))


def _vectors(start: int, count: int, width: int) -> pa.Table:
    """Return a part of an embeddings table with random unit vectors."""
    vectors = np.random.default_rng(start).standard_normal((count, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    layout = schema.embeddings(width)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float16).reshape(-1)), type=layout.field("vector").type
    )
    ids = pa.array([f"{row:032x}" for row in range(start, start + count)])
    places = {"image_id": ids, "file": pa.repeat("f", count), "row": pa.array(range(count)), "key": ids, "sha256": ids}
    return pa.table(places | {"vector": column}, schema=layout)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
