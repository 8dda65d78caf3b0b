"""Compare the tables of two runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from audit.record.ledger import Ledger

TABLES = (
    "rows",
    "captions",
    "caption_groups",
    "control_screen",
    "control_scores",
    "screen",
    "scores",
    "generations",
    "embeddings_sscd",
    "image_clusters",
    "matches",
    "evidence",
    "verdicts",
)


# Tables with similarities. Two kinds of search may round them differently.
SEARCHED = ("matches", "verdicts")


def same(first: Ledger, second: Ledger, tables: Sequence[str] = TABLES) -> None:
    """Assert that the tables of two runs are equal, part by part."""
    for table in tables:
        assert first.parts(table) == second.parts(table), table
        assert first.read(table).equals(second.read(table)), table


def same_but_for_rounding(first: Ledger, second: Ledger) -> None:
    """Assert that the tables of two runs with different kinds of search are equal, but for rounded similarities."""
    same(first, second, [table for table in TABLES if table not in SEARCHED])
    for table in SEARCHED:
        one, other = first.read(table), second.read(table)
        assert one.schema.equals(other.schema), table
        for field in one.schema:
            if pa.types.is_floating(field.type):
                np.testing.assert_allclose(one[field.name].to_numpy(), other[field.name].to_numpy(), atol=1e-6)
            else:
                assert one[field.name].equals(other[field.name]), (table, field.name)
