"""Measure the speed of a worker: run small amounts of each kind of work, with the run's own code, after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Time limits in seconds for one batch, and for several batches.
WAIT, SHORT = 60.0, 5.0
# Numbers of sampling steps of two generations. Their difference in time gives the cost of a step; the rest of the time
# is the cost of the image.
FEW, MORE = 1, 4
# Maximum number of training images, and numbers of vectors to compare with each other.
IMAGES, QUERIES, BLOCK = 256, 1024, 4096


@dataclass(frozen=True)
class Timed:
    """A measurement: the number of units and the seconds that they took."""

    units: int
    seconds: float


@dataclass(frozen=True)
class SpeedProbe:
    """The time that one worker took for each kind of work.

    Attributes:
        screen: Captions.
        few: Generations with FEW steps.
        more: Generations with MORE steps.
        embed: Images, including reading and decoding; None without images.
        search: Searches of QUERIES vectors in BLOCK vectors; None without images.
        cluster: Comparisons of BLOCK vectors with BLOCK vectors; None without images.
    """

    screen: Timed
    few: Timed
    more: Timed
    embed: Timed | None = None
    search: Timed | None = None
    cluster: Timed | None = None


def measure(worker: Worker, captions: Sequence[str], places: pa.Table) -> SpeedProbe:
    """Time a worker on control captions and on training images.

    Args:
        worker: The worker.
        captions: Control captions.
        places: The places of training images, of schema INDEX; may be empty.

    Returns:
        The seconds that each kind of work took.
    """
    import audit
    from audit.duplicates.images import near_pairs
    from audit.scoring.memory import usual_batch
    from audit.search.exact import nearest
    from pipelines.steps import image_vectors
    from pipelines.steps.screening import screen_texts

    config = worker.config

    def texts(count: int) -> list[str]:
        return list(islice(cycle(captions), count))

    def screen(count: int) -> None:
        ids = pa.array([f"{row:032x}" for row in range(count)])
        screen_texts(worker, pa.table({"caption_id": ids, "caption": texts(count)}), "plan")

    def generate(steps: int) -> Callable[[int], None]:
        options = config.generate
        return lambda count: audit.generate(
            worker.model,
            texts(count),
            options.seeds[:1],
            steps,
            options.guidance_scale,
            options.detectors,
            batch_size=options.batch_size,
        )

    _ = worker.model  # load the model before the clock starts
    usual = usual_batch(worker.device)
    rows = max(1, (config.screen.batch_size or usual) // len(config.screen.seeds))
    images = config.generate.batch_size or usual
    found = SpeedProbe(timed(screen, rows), timed(generate(FEW), images), timed(generate(MORE), images))
    if not len(places):
        return found
    width = worker.embedder(config.confirm.embedders[0]).width
    vectors_NE = np.random.default_rng(0).standard_normal((BLOCK, width)).astype(np.float16)
    ids = pa.array([f"{row:032x}" for row in range(BLOCK)])
    return SpeedProbe(
        found.screen,
        found.few,
        found.more,
        timed(lambda count: image_vectors.vectors_at(worker, places.slice(0, count)), image_vectors.BATCH, len(places)),
        timed(lambda count: nearest(vectors_NE[:QUERIES], [(ids, vectors_NE)] * count, 5), 1),
        timed(lambda count: near_pairs(vectors_NE, count * BLOCK, [vectors_NE] * count, 1e9), 1),
    )


def timed(work: Callable[[int], object], batch: int, most: int | None = None) -> Timed:
    """Time `work` on one batch, on several batches if they are short, or on one unit if a batch would take too long.

    Args:
        work: Called with the number of units to do.
        batch: Units per batch.
        most: Maximum number of units.

    Returns:
        The number of units done and the seconds that they took.
    """
    units, seconds = 1, clocked(work, 1)
    if seconds < WAIT:  # the first call was only a warm-up
        seconds = clocked(work, 1)
    while True:
        wanted = batch if units < batch else 4 * units
        more = wanted if most is None else min(wanted, most)
        if more <= units or seconds * more / units > (WAIT if units < batch else SHORT):
            return Timed(units, seconds)
        units, seconds = more, clocked(work, more)


def clocked(work: Callable[[int], object], units: int) -> float:
    """Return the seconds that `work` takes for a number of units."""
    began = time.perf_counter()
    work(units)
    return time.perf_counter() - began
