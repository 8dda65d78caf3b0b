"""Export the captions that were looked at as CSV."""

from __future__ import annotations

import pyarrow as pa

from reports.exports.provenance import provenance
from reports.record.captions import SelectedCaption
from reports.record.model import Record
from reports.spreadsheet import neutralised, to_csv


def to_csv_file(record: Record) -> bytes:
    """Return one row per caption that was looked at, the most serious first.

    Cells that a spreadsheet would read as a formula begin with an apostrophe. `hosts` is a JSON list. The last columns
    are the same in all rows, and say where the row comes from.
    """
    columns = {name: [getattr(row, name) for row in record.selected] for name in SelectedCaption.model_fields}
    columns |= {name: [value] * len(record.selected) for name, value in provenance(record).items()}
    table, _ = neutralised(pa.table(columns))
    return to_csv(table)
