"""The only way to a terminal: text that comes from data is shown, and never acted upon.

Captions, file names and error messages may hold escape sequences (which move the cursor, set the title or the
clipboard) and marks that reverse the direction of writing. Files and machine formats keep them as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import typer
from rich.console import Console as RichConsole
from rich.segment import Segment

_SUSPECT = re.compile(r"[\x00-\x1f\x7f]|[^\x00-\x7f]")
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Persian words and emoji are written with ZWNJ and ZWJ, which only join.
_JOINERS = "\u200c\u200d"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str, keep: str = "\n") -> str:
    r"""Return text with each character that a terminal would act on or hide written as an escape such as ``\x1b``.

    Escaped are control characters (C0, DEL, C1), format characters (the bidirectional ones, zero-width ones but the
    joiners, tags), separators of lines and paragraphs, and surrogates.

    Args:
        text: Any text.
        keep: Control characters that stay; "" for a cell of a table.
    """
    return _replaced(text, keep, _escape)


def visible_json(document: str) -> str:
    r"""Return a JSON document with the same characters written as ``\u001b``: to a JSON reader it is the same."""
    return _replaced(document, "\n", _utf16)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text for people on standard output, or on standard error."""
    typer.echo(visible(text), err=err, nl=nl)


def say_log(text: str, *, err: bool = False) -> None:
    """Print what a job has printed: its colours go, all else is visible."""
    say(_COLOURS.sub("", text).replace("\r\n", "\n"), err=err, nl=False)


class Console(RichConsole):
    """A rich console that acts on its own styles only, whatever the text says."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, their text visible. Cells are better made so before they are measured."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def _replaced(text: str, keep: str, escape: Callable[[str], str]) -> str:
    def show(found: re.Match[str]) -> str:
        character = found[0]
        safe = character in keep or character in _JOINERS or unicodedata.category(character) not in _UNSAFE
        return character if safe else escape(character)

    return _SUSPECT.sub(show, text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
