"""Read what a review says about a run."""

from __future__ import annotations

from pathlib import Path

from audit import schema
from audit.record.ledger import Ledger
from audit.statistics.claims import Claim, reviewed
from pipelines.configuration.settings import absolute


def reviewed_claim(run: str) -> Claim | None:
    """Return the claim of the review of the run at a path or URI, or None if there is no review to claim from."""
    ledger = Ledger(absolute(run, Path.cwd()))
    if not ledger.parts("review_pairs") or not ledger.parts("reviews"):
        return None
    columns = [name for name in schema.REVIEW_PAIRS.names if name != "image"]
    return reviewed(ledger.read("review_pairs", columns=columns), ledger.read("reviews"))
