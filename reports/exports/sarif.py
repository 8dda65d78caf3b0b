"""Export the confirmed captions as SARIF 2.1.0, for CI systems that show and compare findings.

The OASIS standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from audit.schema import CONFIRMED_WORDS
from reports.exports.provenance import provenance
from reports.pages import plural, visible
from reports.record.captions import SelectedCaption
from reports.record.model import Record
from reports.verdict_words import MEANINGS

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"high": "error", "medium": "warning", "low": "note"}  # by risk
# In these, row N is line N + 1. Rows of other formats have no line.
LINE_FORMATS = (".txt", ".jsonl")
NAMES = {"verbatim": "TrainingImageReproduced", "partial": "TrainingImageReproducedInPart"}


def to_sarif(record: Record) -> bytes:
    """Return a SARIF log with one rule per verdict that confirms a copy, and one result per confirmed caption.

    A result keeps its fingerprint in the next run, because it derives from the caption alone. Waived captions are
    suppressed. What could not be audited is a notification.
    """
    found = [row for row in record.selected if row.verdict in CONFIRMED_WORDS]
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": _driver(record)},
                "automationDetails": {"id": f"crossaudit/{record.run.id}", "guid": record.run.id},
                "invocations": [_invocation(record, len(found))],
                "results": [_result(record, row) for row in found],
                "properties": provenance(record),
            }
        ],
    }
    return json.dumps(log, indent=1, ensure_ascii=False).encode()


def _driver(record: Record) -> dict[str, Any]:
    rules = [
        {"id": verdict, "name": NAMES[verdict], "shortDescription": {"text": MEANINGS[verdict].capitalize() + "."}}
        for verdict in CONFIRMED_WORDS
    ]
    return {"name": "crossaudit", "version": provenance(record)["crossaudit"], "rules": rules}


def _invocation(record: Record, results: int) -> dict[str, Any]:
    notes = [
        f"Not audited ({failure.stage}): {failure.cause} ({plural(failure.errors, 'error')})"
        for failure in record.not_audited.failures
    ]
    if left_out := record.confirmed.captions - results:
        notes.append(f"{plural(left_out, 'confirmed caption')} of lower risk are not in this file")
    return {
        "executionSuccessful": record.run.finished is not None,
        "toolExecutionNotifications": [{"level": "warning", "message": {"text": _literal(note)}} for note in notes],
    }


def _result(record: Record, row: SelectedCaption) -> dict[str, Any]:
    waiver = record.waivers.get(row.caption_id)
    suppressions = [{"kind": "external", "status": "accepted", "justification": waiver.reason}] if waiver else []
    return {
        "ruleId": row.verdict,
        "ruleIndex": CONFIRMED_WORDS.index(row.verdict),
        "level": LEVELS[row.risk],
        "message": {"text": _message(row)},
        "locations": [_location(row)],
        "partialFingerprints": {"captionId/v1": row.caption_id},
        "suppressions": suppressions,
        "properties": row.model_dump(include={"risk", "similarity", "region_similarity", "row_count", "family"}),
    }


def _message(row: SelectedCaption) -> str:
    similarity = row.similarity if row.verdict == "verbatim" else row.region_similarity
    measured = [] if similarity is None else [f"similarity {similarity:.2f}"]
    if row.fresh_generations:
        measured.append(f"copied again with {row.fresh_copies} of {row.fresh_generations} other seeds")
    part = "" if row.verdict == "verbatim" else "a part of "
    said = f"The model reproduces {part}a training image for the caption “{visible(row.caption)}”"
    return _literal(f"{said} ({', '.join(measured)}; {plural(row.row_count, 'dataset row')}).")


def _literal(text: str) -> str:
    """Escape what SARIF reads as placeholders and links in messages (sections 3.11.5 and 3.11.6)."""
    for character, escaped in {"\\": "\\\\", "[": "\\[", "]": "\\]", "{": "{{", "}": "}}"}.items():
        text = text.replace(character, escaped)
    return text


def _location(row: SelectedCaption) -> dict[str, Any]:
    """Locate a caption by its first dataset row, or by its caption_id alone if the row is unknown."""
    if row.file is None or row.row is None:
        return {"logicalLocations": [{"name": row.caption_id, "kind": "caption"}]}
    place: dict[str, Any] = {"artifactLocation": {"uri": quote(row.file, safe="/")}}
    if row.file.endswith(LINE_FORMATS):
        place["region"] = {"startLine": row.row + 1}
    logical = {"name": f"row {row.row}", "fullyQualifiedName": f"{row.file}#{row.row}", "kind": "row"}
    return {"physicalLocation": place, "logicalLocations": [logical]}
