"""Ask axe whether everybody can use a page, for tests of pages in a browser."""

from __future__ import annotations

from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from audit.schema import VERDICT_WORDS

# Long tables are most of a page, and axe looks at every element. Their rows are alike, except that a verdict has its
# colour: the first row of each verdict and the first five without one stand for all.
REPEATED = [f"tr:has(.{word}) ~ tr:has(.{word})" for word in VERDICT_WORDS]
REPEATED += [f"tr:nth-child(n + 6):not(:has(.{', .'.join(VERDICT_WORDS)}))"]


def obstacles(page: Page, scheme: Literal["light", "dark"]) -> list[tuple[str, str]]:
    """Return the serious and critical violations that axe finds on a page in a colour scheme: their rule and HTML."""
    page.emulate_media(color_scheme=scheme)
    found = Axe().run(page, context={"exclude": REPEATED}).response["violations"]
    return [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in ("serious", "critical")]
