"""Make the redacted edition of a record: no pictures, and no text of the dataset, of people or of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from audit.record.manifest_entries import LikenessEntry
from reports.exports.provenance import METHOD
from reports.record.captions import SelectedCaption
from reports.record.cases import Case, Generation
from reports.record.commands import NextStep
from reports.record.mitigation import MitigationPair
from reports.record.model import Failure, Method, Record, RunInfo, WaiverNote
from reports.record.provenance import InputFile
from reports.record.review import Review

WITHHELD = "withheld"
NO_PICTURE = "pictures are left out of the redacted edition"
NOTE = (
    "This is a redacted edition. It has no pictures, and the caption_id stands in place of each caption. Files, rows, "
    "keys, addresses, commands, error messages and names are left out. A caption_id is a hash of its caption: whoever "
    "has the dataset, or guesses a caption, can recognize it."
)
ASK = NextStep(purpose="To see a case, give its caption_id to whoever ran the audit.", commands=[])
# What replaces the fields of each part. A caption becomes its caption_id wherever it stands.
REPLACED: dict[type, dict[str, Any]] = {
    RunInfo: {"path": "RUN", "model": WITHHELD, "title": "Memorization audit", "pictures_removed": NO_PICTURE},
    SelectedCaption: {"hosts": [], "file": None, "row": None, "error": None},
    Generation: {"picture": None},
    Case: {
        "training": None,
        "region": None,
        "image_places": [],
        "caption_places": [],
        "explain": None,
        "reproduce": None,
    },
    MitigationPair: {"plain": None, "mitigated": None, "training": None},
    Failure: {"cause": WITHHELD, "message": None},
    InputFile: {"file": WITHHELD},
    LikenessEntry: {"of_controls": [], "of_captions": []},
    WaiverNote: {"reason": WITHHELD, "owner": WITHHELD},
    Record: {"next_steps": [ASK]},
}


def redacted(record: Record) -> Record:
    """Return a record that can be shown to people who may not see the dataset. Its limits say what is left out."""
    found: Record = _redacted(record)
    return found.model_copy(update={"limits": [NOTE, *found.limits]})


def _redacted(part: Any) -> Any:
    if isinstance(part, list):
        return [_redacted(value) for value in part]
    if isinstance(part, dict):
        return {key: _redacted(value) for key, value in part.items()}
    if not isinstance(part, BaseModel):
        return part
    fields = {name: _redacted(getattr(part, name)) for name in type(part).model_fields}
    fields |= REPLACED.get(type(part), {})
    if "caption" in fields:
        fields["caption"] = fields["caption_id"]
    if isinstance(part, Review):
        fields |= _raters(part)
    if isinstance(part, Method):
        fields["settings"] = {name: part.settings[name] for name in METHOD if name in part.settings}
    return part.model_copy(update=fields)


def _raters(review: Review) -> dict[str, Any]:
    """Number the raters instead of naming them."""
    name_of = {rater.name: f"rater {number}" for number, rater in enumerate(review.raters, 1)}
    agreements = [
        replace(pair, raters=(name_of[pair.raters[0]], name_of[pair.raters[1]])) for pair in review.agreements
    ]
    return {"raters": [replace(rater, name=name_of[rater.name]) for rater in review.raters], "agreements": agreements}
