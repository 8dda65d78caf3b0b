"""Render the explanation of one caption as an HTML file."""

from __future__ import annotations

from typing import Any

from reports import figures
from reports.pages import environment
from reports.pictures import picture

MOVES = 20  # tokens for which the effect of their removal is shown


def render(explained: Any) -> str:
    """Return the page of an `audit.explaining.caption.Explanation` as HTML that runs no script and loads nothing."""
    moves = explained.moves[:MOVES]
    tokens = [explained.tokens[place] for place, _ in moves]
    drawn = {
        "attention": figures.attention(explained.tokens, explained.attention_PT),
        "entropies": figures.entropies(explained.entropy_T, explained.band_T2, explained.control_captions),
        "falls": figures.falls(tokens, [fall for _, fall in moves]) if moves else None,
    }
    return (
        environment()
        .get_template("explanation.html.j2")
        .render(
            explained=explained,
            image=picture(explained.image),
            region=picture(explained.region),
            figures={name: figures.data_uri(svg) for name, svg in drawn.items() if svg},
            left_out=len(explained.moves) - len(moves),
        )
    )
