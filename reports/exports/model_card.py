"""Export the findings as a section of a model card, in Markdown as the Hugging Face Hub shows it."""

from __future__ import annotations

import string

import yaml
from markupsafe import Markup

from audit.schema import CONFIRMED_WORDS
from reports.exports.provenance import METHOD, provenance
from reports.pages import environment, visible
from reports.record.model import Record

MOST = 10  # captions in the table of cases
PLAIN = ",-'?/"  # punctuation that means nothing within a line of Markdown


def to_model_card(record: Record) -> bytes:
    """Return a section with what was tested, the verdicts, the claims, the limits, and how to reproduce it."""
    template = environment().get_template("model_card.md.j2")
    settings = {name: record.method.settings[name] for name in METHOD if name in record.method.settings}
    confirmed = [row for row in record.selected if row.verdict in CONFIRMED_WORDS]
    page = template.render(
        record=record,
        provenance=provenance(record),
        confirmed=confirmed[:MOST],
        more=record.confirmed.captions - len(confirmed[:MOST]),
        settings=Markup(yaml.safe_dump(settings, sort_keys=False)),
        literal=literal,
    )
    return f"{page}\n".encode()


def literal(text: str) -> Markup:
    """Escape a text so that neither Markdown nor HTML reads anything into it: punctuation becomes HTML entities."""
    special = set(string.punctuation) - set(PLAIN)
    return Markup("".join(f"&#{ord(c)};" if c in special else c for c in visible(text)))
