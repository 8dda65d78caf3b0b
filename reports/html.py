"""Write RUN/report.html: one file, rendered from the record of the run, for lawyers and engineers."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from audit.errors import AuditError
from audit.record.filesystem import write_file
from audit.schema import RISK_WORDS, VERDICT_WORDS
from reports import figures
from reports.inline_svg import Strip, inline
from reports.pages import environment
from reports.record.build import TOP, build
from reports.record.cases import PER_FAMILY, Case
from reports.record.model import Record
from reports.stored_run import locate
from reports.verdict_words import COLOURS
from reports.waivers import Waiver

EXAMPLES = 3  # copies at the top of the page
FIGURES = {
    "scores": "Histogram of the screening scores of audited, confirmed and control captions, with the lowest score of "
    "the budget",
    "similarities": "Histogram of the similarity of generated images to training images, for audited captions above "
    "the axis and control captions below, with the threshold",
}


def write(run: str | Path, waivers: Sequence[Waiver] = (), top: int = TOP) -> str:
    """Write report.html into a run.

    Args:
        run: The directory or URI of the run.
        waivers: Waivers, to mark the cases that they cover.
        top: The largest number of cases with images.

    Returns:
        The path of the file.

    Raises:
        AuditError: A table or the manifest cannot be read, or the file cannot be written.
    """
    located = locate(run)
    path = f"{located.root}/report.html"
    page = render(build(run, top, waivers))
    try:
        write_file(located.filesystem, path, page.encode())
    except OSError as error:
        raise AuditError(f"cannot be written: {error}", where=path) from error
    return path


def render(record: Record) -> str:
    """Return the report as one HTML page that loads nothing and escapes every caption.

    Its content-security policy allows only the script and the style sheet of this page, by their hashes.
    """
    style = environment().get_template("style.css.j2").render(words=COLOURS, colours=COLOURS)
    script = resources.files("reports").joinpath("templates/report/report.js").read_text("utf-8")
    histograms = record.histograms
    return (
        environment()
        .get_template("report/report.html.j2")
        .render(
            record=record,
            style=Markup(style),
            script=Markup(script),
            hashes={"style": _hash(style), "script": _hash(script)},
            selected_by_id={row.caption_id: row for row in record.selected},
            family_by_id={family.family: family for family in record.families},
            members=_members(record),
            family_number={family.family: number for number, family in enumerate(record.families, 1)},
            number_of={case.caption_id: number for number, case in enumerate(record.cases, 1)},
            examples=_examples(record),
            waived=Counter(record.waivers.values()),
            figures={
                name: inline(figures.histogram(name, found), name, FIGURES[name]) for name, found in histograms.items()
            },
            strips={name: Strip(name, found) for name, found in histograms.items()},
            tradeoff=_tradeoff(record),
            attention=_attention,
            words=VERDICT_WORDS,
            risks=RISK_WORDS,
            per_family=PER_FAMILY,
        )
    )


def _hash(text: str) -> str:
    """Return the source expression of a content-security policy that allows this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _examples(record: Record) -> list[Case]:
    """Return the first case of each of the most serious families, with both images."""
    family_of = {row.caption_id: row.family for row in record.selected}
    first: dict[str | None, Case] = {}
    for case in record.cases:
        if case.generations and case.generations[0].picture and case.training:
            first.setdefault(family_of[case.caption_id], case)
    return list(first.values())[:EXAMPLES]


def _members(record: Record) -> dict[str, list[str]]:
    """Return the caption_ids of each family that are in the record, the most serious first."""
    found: dict[str, list[str]] = {family.family: [] for family in record.families}
    for row in record.selected:
        if row.family in found:
            found[row.family].append(row.caption_id)
    return found


def _tradeoff(record: Record) -> Markup | None:
    settings = record.mitigation.settings if record.mitigation else []
    measured = [setting.model_dump() for setting in settings if setting.ordinary_clip is not None]
    label = "Copies that remain with each mitigation setting, against how well ordinary captions are followed"
    return inline(figures.tradeoff(measured), "tradeoff", label) if measured else None


def _attention(case: Case) -> Markup:
    label = "Attention to each token of the caption"
    return inline(figures.token_attention(case.token_attention or []), f"attention-{case.caption_id}", label)
