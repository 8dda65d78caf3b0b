"""Read which captions were selected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.record.ledger import Ledger

if TYPE_CHECKING:
    from pipelines.configuration.config import Select


def allowed(config: Select, captions: int) -> int:
    """The budget, of so many captions."""
    return config.budget if config.budget is not None else max(1000, -(-captions // 1000))


def selected(ledger: Ledger) -> pa.Table:
    """(caption_id, caption) of the selected captions, in order."""
    found = [schema.CAPTIONS.empty_table().select(["caption_id", "caption"])]
    for name, scores in ledger.each("scores", ["selected_by"]):
        captions = ledger.read("captions", name, ["caption_id", "caption"])
        found.append(captions.filter(pc.is_valid(scores["selected_by"])))
    return pa.concat_tables(found)
