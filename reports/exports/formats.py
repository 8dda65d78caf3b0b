"""Know all formats in which results are handed on, and prepare the record for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reports.exports.caption_table import to_csv_file
from reports.exports.croissant import to_croissant
from reports.exports.model_card import to_model_card
from reports.exports.redaction import redacted
from reports.exports.sarif import to_sarif
from reports.finished import finished_manifest
from reports.html import render
from reports.record.build import build
from reports.record.model import Record
from reports.waivers import Waiver

FORMATS: dict[str, Callable[[Record], bytes]] = {
    "html": lambda record: render(record).encode(),
    "json": lambda record: record.model_dump_json(indent=1).encode(),
    "csv": to_csv_file,
    "sarif": to_sarif,
    "croissant": to_croissant,
    "model-card": to_model_card,
}


def finished_record(run: str | Path, waivers: Sequence[Waiver] = (), redact: bool = False) -> Record:
    """Build the record of a run to hand on.

    Args:
        run: The directory or URI of the run.
        waivers: Waivers, to mark the captions that they cover.
        redact: Whether to leave out pictures and all text of the dataset.

    Raises:
        AuditError: The run is not finished, is an index, or cannot be read.
    """
    finished_manifest(run)
    record = build(run, waivers=waivers)
    return redacted(record) if redact else record
