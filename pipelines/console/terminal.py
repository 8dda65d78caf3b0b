"""Print text to a terminal so that text from data is displayed and never interpreted.

Captions, file names and error messages may contain escape sequences (which move the cursor, or set the title or the
clipboard) and marks that reverse the text direction. Files and machine-readable formats keep them unchanged.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import typer
from rich.console import Console as RichConsole
from rich.segment import Segment

_SUSPECT = re.compile(r"[\x00-\x1f\x7f]|[^\x00-\x7f]")
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# ZWNJ and ZWJ occur in Persian words and in emoji. They are harmless: they only join characters.
_JOINERS = "\u200c\u200d"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str, keep: str = "\n") -> str:
    r"""Return text with every character that a terminal would interpret or hide escaped, for example as ``\x1b``.

    Escapes control characters (C0, DEL, C1), format characters (bidirectional marks, tags, and zero-width characters
    other than joiners), line and paragraph separators, and surrogates.

    Args:
        text: Any text.
        keep: Control characters to keep; "" for a table cell.
    """
    return _replaced(text, keep, _escape)


def visible_json(document: str) -> str:
    r"""Return a JSON document with the same characters escaped as ``\u001b``, which does not change its meaning."""
    return _replaced(document, "\n", _utf16)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print escaped text to standard output, or to standard error."""
    typer.echo(visible(text), err=err, nl=nl)


def emit(content: bytes) -> None:
    """Write UTF-8 to standard output: unchanged, or escaped if it is a terminal."""
    if sys.stdout.isatty():
        say(content.decode(), nl=False)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def say_log(text: str, *, err: bool = False) -> None:
    """Print a job's output, without its colours and with other control characters escaped."""
    say(_COLOURS.sub("", text).replace("\r\n", "\n"), err=err, nl=False)


class Console(RichConsole):
    """A rich console that applies only its own styles and escapes control characters in the text."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the segments of a renderable with escaped text. Escape table cells before rich measures them."""
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
