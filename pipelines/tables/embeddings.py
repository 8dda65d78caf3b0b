"""Read the vectors of training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audit.record.ledger import Ledger
from audit.search.exact import vectors_of
from pipelines.engine.context import Run

if TYPE_CHECKING:
    pass


def table(embedder: str) -> str:
    """Return the name of the table with one vector per image from this embedder."""
    return f"embeddings_{embedder}"


def stored_table(embedder: str) -> str:
    """Return the name of the table of second vectors, of images with an EXIF rotation as their pixels are stored.

    The table exists only with `images.exif: both`, and only if the dataset has such images.
    """
    return f"embeddings_{embedder}_stored"


Vectors = tuple[pa.Array, np.ndarray]


def readers(ledger: Ledger, name: str) -> Iterator[tuple[int, Callable[[], Vectors]]]:
    """Yield the number of images in each part of an embeddings table, and a function that reads the part.

    The function returns image ids [N] and vectors [N, E].
    """

    def read(part: str) -> Vectors:
        found = ledger.read(name, part, ["image_id", "vector"])
        return found["image_id"].combine_chunks(), vectors_of(found["vector"])

    for part in ledger.parts(name):
        yield ledger.rows(name, part), partial(read, part)


def embedded(ledger: Ledger, name: str) -> Iterator[Vectors]:
    """Yield image ids [N] and vectors [N, E] of an embeddings table part by part, reading one part ahead."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for _, read in readers(ledger, name):
            now, ahead = ahead, reader.submit(read)
            if now is not None:
                yield now.result()
        if ahead is not None:
            yield ahead.result()


def refreshed(run: Run) -> int:
    """Update the manifest's list of embeddings parts, and return how many images have a vector."""
    names = run.config.confirm.embedders
    for name in names:
        run.manifest.refresh(stored_table(name))
    return [run.manifest.refresh(table(name)) for name in names][0]
