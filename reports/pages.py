"""Share the Jinja environment of all pages, and how they show text and numbers."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import jinja2
from markupsafe import Markup, escape

from audit.durations import duration

MAX_TEXT = 240  # characters


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
    found.filters.update(visible=visible, duration=duration, percent=share, count=count, plural=plural, code=code)
    return found


def visible(text: str, most: int = MAX_TEXT) -> str:
    """Return a text for display: control and direction marks are spelled out, and long texts are shortened."""
    shown = "".join(_spelled(c) for c in text[:most])
    return f"{shown} … ({len(text):,} characters)" if len(text) > most else shown


def code(text: str) -> Markup:
    """Escape a text, and set what it has between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _spelled(character: str) -> str:
    # Many emoji contain the zero-width joiner.
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and character != "\u200d"
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def share(value: float) -> str:
    """Format a share as a percentage, clipped to 0 % to 100 %."""
    return f"{100 * min(max(value, 0), 1):.1f}%"


def count(number: int | None) -> str:
    """Format 1234567 as 1,234,567 and None as a question mark."""
    return "?" if number is None else f"{number:,}"


def plural(number: int, one: str, many: str = "") -> str:
    """Format a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
