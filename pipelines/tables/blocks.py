"""Group consecutive parts of a table into blocks. The rows of the table are numbered in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pyarrow as pa

from audit.record.ledger import Ledger, Shard

# Number of images that are compared with all their predecessors in one scan.
BLOCK = 16_384


def blocks(counts: Mapping[str, int], size: int, prefix: str = "") -> list[Shard]:
    """Group consecutive parts into shards of up to `size` rows.

    Args:
        counts: The number of rows of each part, in order.
        size: The maximum number of rows per shard. A larger part is a shard of its own.
        prefix: The prefix of the shards' names.

    Returns:
        The shards, whose `source` is (number of the first row, names of the parts).
    """
    groups: list[tuple[int, list[str], int]] = []
    for (part, count), start in zip(counts.items(), accumulate(counts.values(), initial=0), strict=False):
        if groups and groups[-1][2] + count <= size:
            first, parts, rows = groups[-1]
            groups[-1] = first, [*parts, part], rows + count
        else:
            groups.append((start, [part], count))
    return [
        Shard(f"{prefix}{number:05d}", (first, parts), 0, rows) for number, (first, parts, rows) in enumerate(groups)
    ]


def block(ledger: Ledger, table: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Read the rows of a shard that `blocks` made.

    Args:
        ledger: The ledger with the table.
        table: The table.
        shard: The shard.
        columns: The columns to read.

    Returns:
        The rows, in order.
    """
    parts = [ledger.read(table, part, columns) for part in shard.source[1]]
    return pa.concat_tables(parts).slice(shard.start, len(shard))


def numbers(shard: Shard) -> tuple[int, int]:
    """Return the number of the first row of the shard, and the number after its last row."""
    return shard.source[0] + shard.start, shard.source[0] + shard.stop
