"""Write RUN/report.html, a single file for lawyers and engineers."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import pyarrow as pa
from PIL import Image

from audit.durations import duration
from audit.errors import AuditError
from audit.record.filesystem import write_file
from audit.schema import VERDICT_WORDS
from reports.facts import PER_FAMILY, Facts
from reports.mitigation import read as read_mitigation
from reports.purged import note
from reports.reviews import read as read_review
from reports.stored_run import locate
from reports.verdict_words import COLOURS, MEANINGS
from reports.views import connect
from reports.waivers import Waiver, waived_captions

MAX_SIDE = 256  # pixels of an image in the report
MAX_IMAGE_BYTES = 15_000_000  # all images of a report together
MAX_CAPTION = 240  # characters


def write(run: str | Path, waivers: Sequence[Waiver] = ()) -> str:
    """Write report.html into the run, with the waived cases marked, and return its path.

    Raises AuditError if a table or the manifest cannot be read, or if the file cannot be written.
    """
    located = locate(run)
    path = f"{located.root}/report.html"
    page = render(run, waivers)
    try:
        write_file(located.filesystem, path, page.encode())
    except OSError as error:
        raise AuditError(f"cannot be written: {error}", where=path) from error
    return path


def render(run: str | Path, waivers: Sequence[Waiver] = ()) -> str:
    """Return the report as HTML that runs no script, loads nothing from elsewhere and escapes every caption."""
    manifest = locate(run).manifest()
    with connect(run) as connection:
        try:
            facts = Facts(connection, manifest)
            context = {
                "manifest": manifest,
                "removed": note(manifest),
                "settings": facts.settings,
                "embedder": facts.embedder,
                "thresholds": facts.thresholds,
                "verdicts": facts.verdicts(),
                "words": VERDICT_WORDS,
                "meanings": MEANINGS,
                "colours": COLOURS,
                "failures": facts.failures(),
                "figures": facts.figures(),
                "cases": _embedded(facts.cases()),
                "confirmed": facts.confirmed(),
                "near_misses": facts.near_misses(),
                "confirm_error": manifest.confirm_error,
                "per_family": PER_FAMILY,
                "mitigation": _mitigation(facts),
                "waiver_of": (waiver_of := waived_captions(connection, waivers)),
                "waived": Counter(waiver_of.values()),
                "review": read_review(connection),
            }
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(f"a table cannot be read: {str(error).strip()}", where=str(run)) from error
    return environment().get_template("report.html.j2").render(context)


@cache
def environment() -> jinja2.Environment:
    """Return the Jinja environment of all pages. It escapes every value and raises an error for missing ones."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(visible=visible, duration=duration, percent=percent, count=count)
    return found


def visible(text: str, most: int = MAX_CAPTION) -> str:
    """Return a caption for display: control and direction marks are spelled out, and long captions are shortened."""
    shown = "".join(_spelled(c) for c in text[:most])
    return f"{shown} … ({len(text):,} characters)" if len(text) > most else shown


def _spelled(character: str) -> str:
    # Many emoji contain the zero-width joiner.
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and character != "\u200d"
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def percent(share: float) -> str:
    """Format a share as a CSS length, clipped to 0 % to 100 %."""
    return f"{100 * min(max(share, 0), 1):.1f}%"


def count(number: int | None) -> str:
    """Format 1234567 as 1,234,567 and None as a question mark."""
    return "?" if number is None else f"{number:,}"


def _embedded(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cases that fit into MAX_IMAGE_BYTES, with their images as data URIs."""
    kept, used = [], 0
    for case in cases:
        for name in ("generation", "training", "region"):
            case[name] = picture(case[name])
            used += len(case[name]["uri"]) if case[name] else 0
        if used > MAX_IMAGE_BYTES:
            break
        kept.append(case)
    return kept


def _mitigation(facts: Facts) -> dict[str, Any] | None:
    """Return the data of the mitigation section with images as data URIs, or None if mitigation was not measured."""
    found = read_mitigation(facts)
    for pair in found["pairs"] if found else []:
        for name in ("training", "plain", "mitigated"):
            pair[name] = picture(pair[name])
    return found


def picture(encoded: bytes | None) -> dict[str, Any] | None:
    """Decode an image and encode it again with at most MAX_SIDE pixels per side.

    Returns None if there is no image or it cannot be read.
    """
    if encoded is None:
        return None
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            width, height = image.size
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    shown = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    tiny = max(width, height) <= 128
    buffer = io.BytesIO()
    shown.save(buffer, "PNG" if tiny else "JPEG", optimize=True)
    uri = f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "tiny": tiny, "size": f"{width} × {height}"}
