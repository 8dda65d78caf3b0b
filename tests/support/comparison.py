"""Compare the tables of two runs."""

from __future__ import annotations

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


def same(first: Ledger, second: Ledger) -> None:
    """Assert that the tables of two runs are equal, part by part."""
    for table in TABLES:
        assert first.parts(table) == second.parts(table), table
        assert first.read(table).equals(second.read(table)), table
