"""Read which captions were selected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.record.ledger import Ledger

if TYPE_CHECKING:
    from pipelines.configuration.select import Budget


def allowed(budget: Budget, captions: int) -> int:
    """Return the budget for a number of captions: the configured one, or 0.1 % of the captions but at least 1,000."""
    return budget.captions if budget.captions is not None else max(1000, -(-captions // 1000))


def selected(ledger: Ledger, *how: str) -> pa.Table:
    """Return (caption_id, caption) of the selected captions, in order.

    Args:
        ledger: The run.
        how: Only captions that were selected in one of these ways: budget | sample (default: all).
    """
    words = pa.array(how or ("budget", "sample"))
    found = [schema.CAPTIONS.empty_table().select(["caption_id", "caption"])]
    for name, scores in ledger.each("scores", ["selected_by"]):
        captions = ledger.read("captions", name, ["caption_id", "caption"])
        found.append(captions.filter(pc.is_in(scores["selected_by"], value_set=words)))
    return pa.concat_tables(found)
