"""Write embedding tables of images that resemble one another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from audit import schema
from audit.record.ledger import Ledger
from pipelines.tables import embeddings

WIDTH = 8


def vectors_table(start: int, vectors_NE: np.ndarray) -> pa.Table:
    """Return an embedding table of images in one tar, the first of which is number `start`."""
    count = len(vectors_NE)
    vectors_NE = (vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)).astype(np.float16)
    names = [f"{number:032x}" for number in range(start, start + count)]
    rows = [{"image_id": name, "file": "0.tar", "row": number, "key": name, "sha256": name, "vector": vector}
            for number, (name, vector) in enumerate(zip(names, vectors_NE, strict=True), start)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.embeddings(WIDTH))


def copies(seed: int, pictures: int, of_each: int) -> np.ndarray:
    """Return vectors of pictures in turn, each `of_each` times and slightly different."""
    rng = np.random.default_rng(seed)
    return np.tile(rng.normal(size=(pictures, WIDTH)), (of_each, 1)) + 0.02 * rng.normal(
        size=(pictures * of_each, WIDTH)
    )


def written(ledger: Ledger, vectors_NE: np.ndarray, sizes: list[int]) -> None:
    """Write an embedding table in parts of these sizes."""
    for number, (start, count) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False)):
        ledger.write(
            embeddings.table("sscd"), f"{number:05d}", vectors_table(int(start), vectors_NE[start : start + count])
        )
