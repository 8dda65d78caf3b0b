"""What confirming costs: the exact search over the multiplication that it rests on, its memory, and decoding.

    python -m benchmarks.confirm search [--images 5_000_000 --rows 16384 --pairs 1]
    python -m benchmarks.confirm embedding [--weights FILE]
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from PIL import Image

from audit import schema
from audit.embedding import BATCH, load_embedder
from audit.matching import nearest, vectors_of
from benchmarks.paired import ratio
from pipelines.demo.demo import bundle
from pipelines.ledger import Ledger
from pipelines.stages import confirm, embed
from pipelines.stages.confirm import NEIGHBOURS

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
NAME = "sscd"


@app.command()
def search(
    images: int = 200_000,
    queries: int = 1024,
    width: int = 512,
    rows: Annotated[int, typer.Option(help="Of a shard.")] = 1024,
    pairs: int = 5,
    folder: Annotated[Path | None, typer.Option(help="Where the vectors go, for a while.")] = None,
    threads: int = 1,
) -> None:
    """Print the search's time over that of a bare product, and of a bare `faiss.knn`, over the same shards."""
    import faiss

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        ledger = Ledger(work)
        for number, start in enumerate(range(0, images, rows)):
            ledger.write(embed.table(NAME), f"{number:05d}", _vectors(start, min(rows, images - start), width))
        query_QE = vectors_of(_vectors(images, queries, width)["vector"]).astype(np.float32)
        before = _resident()

        def found() -> Any:
            return nearest(query_QE, confirm.index(ledger, NAME), NEIGHBOURS)

        began = time.perf_counter()
        found()
        seconds = time.perf_counter() - began
        print(f"{images:,} images, {queries:,} queries: {seconds:.1f} s, {images * queries / seconds:.3g} pairs a second")
        print(f"peak of memory {_resident():,.0f} MiB, {before:,.0f} before the search", flush=True)
        shards = [part.astype(np.float32) for _, part in zip(range(8), _blocks(ledger), strict=False)]
        few = Ledger(work)

        def same() -> Any:
            parts = zip(range(len(shards)), confirm.index(few, NAME), strict=False)
            return nearest(query_QE, (part for _, part in parts), NEIGHBOURS)

        plain = {
            "a matrix product": lambda: [query_QE @ part.T for part in shards],
            "faiss.knn": lambda: [
                faiss.knn(query_QE, part, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT) for part in shards
            ],
        }
        for name, run in plain.items():
            print(f"search over {name} of {len(shards)} shards in memory: {ratio(run, same, 'cpu', pairs)}", flush=True)


def _blocks(ledger: Ledger) -> Any:
    return (vectors for _, vectors in confirm.index(ledger, NAME))


def _vectors(start: int, count: int, width: int) -> pa.Table:
    """A part of an embeddings table: random directions."""
    vectors = np.random.default_rng(start).standard_normal((count, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    layout = schema.embeddings(width)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float16).reshape(-1)), type=layout.field("vector").type
    )
    ids = pa.array([f"{row:032x}" for row in range(start, start + count)])
    places = {"image_id": ids, "file": pa.repeat("f", count), "row": pa.array(range(count)), "key": ids, "sha256": ids}
    return pa.table(places | {"vector": column}, schema=layout)


@app.command()
def embedding(
    weights: Annotated[Path | None, typer.Option(help="Of an embedder; the bundle's if not given.")] = None,
    device: str = "cpu",
    side: Annotated[int, typer.Option(help="Of the images, JPEG.")] = 512,
    count: int = 256,
) -> None:
    """Print what share of the time of embedding is the network's own, with images decoded beside it and not."""
    torch.set_num_threads(1)
    embedder = load_embedder(NAME, weights or bundle() / "embedders/sscd.safetensors", device)
    contents = [_jpeg(seed, side) for seed in range(count)]
    batch = torch.stack([embedder.preprocess(embed.decode(contents[0]))] * BATCH).to(device)

    def network() -> None:
        with torch.inference_mode():
            for _ in range(0, count, BATCH):
                embedder.encode(batch).cpu()

    def whole() -> None:
        for start in range(0, count, BATCH):
            embedder.embed([embed.decode(content) for content in contents[start : start + BATCH]])

    print(f"embedding over its network alone: {ratio(network, whole, device, 3)}", flush=True)


def _jpeg(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    app()
