"""Find images with the same bytes as an earlier image, by shuffling the hashes of their files out of core."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audit.duplicates.images import same_bytes
from audit.record.ledger import Shard, Tables
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.tables.blocks import block, blocks, numbers

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

HASHES, COPIES = "_image_hashes", "_image_copies"
# Number of images that are read together, and of hashes that are compared together.
BLOCK, RANGE = 1 << 17, 1 << 22
# Number of leading hexadecimal digits of a hash that form its shuffle key.
DIGITS = 15
LINK = pa.schema([("first", pa.int64()), ("image", pa.int64())])
_HASHES = pa.schema([("key", pa.int64()), ("image", pa.int64()), ("sha256", pa.string())])


def run(run: Run, table: str, counts: Mapping[str, int]) -> None:
    """Write COPIES (schema LINK), in parts sorted by `image`.

    Args:
        run: The run.
        table: The embeddings table with the images.
        counts: The number of rows of each of its parts.
    """
    ranges = -(-sum(counts.values()) // RANGE)
    shards = [Shard(f"{part:05d}", ranges, part, part + 1) for part in range(ranges)]
    run.execute(
        Step("cluster: hashes", HASHES, "images", run.ledger, partial(_hashes, table=table)), blocks(counts, BLOCK)
    )
    run.execute(Step("cluster: same bytes", COPIES, "ranges", run.ledger, _copies), shards)


def _hashes(worker: Worker, shard: Shard, table: str) -> Tables:
    sha256 = block(worker.ledger, table, shard, ["sha256"])["sha256"]
    key_N = np.array([int(digits[:DIGITS], 16) for digits in sha256.to_pylist()], np.int64)
    return {HASHES: pa.table([key_N, np.arange(*numbers(shard)), sha256], schema=_HASHES).sort_by("key")}


def _copies(worker: Worker, shard: Shard) -> Tables:
    low, high = ((at << 4 * DIGITS) // shard.source for at in (shard.start, shard.stop))
    found = worker.ledger.between(HASHES, "key", low, high)
    pairs_M2 = same_bytes(found["sha256"], found["image"].to_numpy())
    return {COPIES: pa.table([pairs_M2[:, 0], pairs_M2[:, 1]], schema=LINK).sort_by("image")}
