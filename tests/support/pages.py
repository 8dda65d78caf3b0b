"""Find the pages of the documentation and their code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
# docs/generate.py writes these pages, and git ignores them.
GENERATED = [DOCS / f"reference/{name}.md" for name in ("cli", "configuration", "tables", "views", "api")]
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if page not in GENERATED)])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The page.
        language: The language of the block.
        text: The content.
        not_run: The reason in a `not run` comment before the block, or None.
    """

    page: Path
    language: str
    text: str
    not_run: str | None

    @property
    def lines(self) -> list[str]:
        """Return the lines that are neither empty nor comments."""
        return [line for line in self.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a page in order."""
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        yield Block(page, match[1], match[2], reason[1] if reason else None)


def prose(page: Path) -> str:
    """Return the text of a page without its fenced code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def name_of(page: Path) -> str:
    """Return the path of a page in the checkout, for use as a test id."""
    return page.relative_to(ROOT).as_posix()
