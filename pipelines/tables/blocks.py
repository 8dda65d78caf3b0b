"""Blocks: consecutive parts of a table that are worked together. Its rows are numbered in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import pyarrow as pa

from audit.record.ledger import Ledger, Shard

# Images that are compared with all their predecessors in one scan of those.
BLOCK = 16_384


def blocks(counts: Mapping[str, int], size: int, prefix: str = "") -> list[Shard]:
    """Parts of so many rows each, in blocks of up to `size`; source: (number of the first row, parts)."""
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
    parts = [ledger.read(table, part, columns) for part in shard.source[1]]
    return pa.concat_tables(parts).slice(shard.start, len(shard))


def numbers(shard: Shard) -> tuple[int, int]:
    """The number of the shard's first row, and that after its last."""
    return shard.source[0] + shard.start, shard.source[0] + shard.stop
