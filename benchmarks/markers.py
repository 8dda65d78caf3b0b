"""Replace the tables of a Markdown page that stand between markers."""

from __future__ import annotations

import re

MARKED = re.compile(r"<!-- table: (?P<name>[a-z0-9-]+) -->\n.*?<!-- end of table -->", re.DOTALL)


def insert(page: str, tables: dict[str, str]) -> str:
    """Replace the marked tables of a page.

    Args:
        page: The text of the page.
        tables: The tables, by the name of their marker.

    Raises:
        KeyError: The page has a marker for a table that does not exist.
    """
    return MARKED.sub(lambda m: f"<!-- table: {m['name']} -->\n{tables[m['name']]}\n<!-- end of table -->", page)
