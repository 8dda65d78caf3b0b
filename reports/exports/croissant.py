"""Export the findings as a fragment of Croissant metadata, to be merged into the croissant.json of the dataset.

It has the properties of the Croissant RAI vocabulary 1.0 that an audit can fill in:
http://mlcommons.org/croissant/RAI/1.0
"""

from __future__ import annotations

import json

from audit.schema import CONFIRMED_WORDS
from reports.exports.provenance import provenance
from reports.pages import plural
from reports.record.model import Record

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
}


def to_croissant(record: Record) -> bytes:
    """Return a JSON-LD dataset without a name and files of its own. It quotes no captions."""
    fragment = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "dct:conformsTo": "http://mlcommons.org/croissant/RAI/1.0",
        "rai:dataLimitations": [_audit(record), *(claim.sentence for claim in record.claims.claims), *record.limits],
        "rai:dataBiases": [_repetition(record)],
        "rai:personalSensitiveInformation": [_exposure(record)],
    }
    return json.dumps(fragment, indent=1, ensure_ascii=False).encode()


def _audit(record: Record) -> str:
    known = provenance(record)
    return (
        f"A memorization audit of a text-to-image model trained on this dataset (crossaudit {known['crossaudit']}, run "
        f"{known['run_id']}, finished {record.run.finished}, sha256 of the denoising network {known['model_sha256']}) "
        f"found: {record.answer.sentence}"
    )


def _repetition(record: Record) -> str:
    rows = sum(count.rows for count in record.verdicts)
    reproduced = sum(count.rows for count in record.verdicts if count.verdict in CONFIRMED_WORDS)
    return (
        f"Repetition: {plural(record.confirmed.captions, 'caption')} for which the model reproduces a training image "
        f"stand in {reproduced:,} of the {plural(rows, 'dataset row')} that were audited."
    )


def _exposure(record: Record) -> str:
    return (
        "The audit did not look for personal information. The model reproduces "
        f"{plural(record.confirmed.images, 'training image')}, whole or in part, and with them what personal "
        "information they show."
    )
