"""Render the pages. They look like the report, and escape every text of the run."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from reports.pages import environment
from reports.verdict_words import COLOURS, MEANINGS

MOST_CELL = 1000  # characters


@cache
def _environment() -> jinja2.Environment:
    shared = environment()
    loaders = [jinja2.PackageLoader("pipelines.ui"), jinja2.PackageLoader("reports")]
    own = shared.overlay(loader=jinja2.ChoiceLoader(loaders))
    own.filters["cell"] = cell
    return own


def page(name: str, **content: Any) -> str:
    """Render a page from the template of that name."""
    return _environment().get_template(f"{name}.html.j2").render(content, meanings=MEANINGS)


def style() -> str:
    """Return the style sheet of all pages: that of the report, and what only these pages need."""
    shared = environment().get_template("style.css.j2").render(words=COLOURS, colours=COLOURS)
    return shared + resources.files("pipelines.ui").joinpath("templates", "ui.css").read_text("utf-8")


def script() -> str:
    """Return the script of the first page."""
    return resources.files("pipelines.ui").joinpath("templates", "live.js").read_text("utf-8")


def cells(table: pa.Table) -> list[list[Any]]:
    """Return the rows of a table."""
    return [list(row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def cell(value: Any) -> str | Markup:
    """Format a value of any type for the cell of a table."""
    visible = environment().filters["visible"]
    if value is None:
        return Markup('<span class="soft">null</span>')
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value), MOST_CELL)
