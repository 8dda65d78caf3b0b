"""Search the captions of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from audit.schema import VERDICT_WORDS
from reports.record.source import Source

PAGE = 50  # captions

# A run that has not judged yet has captions and no verdicts.
SEARCH = """
from captions c left join verdicts v using (caption_id) left join scores s using (caption_id)
where contains(lower(c.caption), lower($text)) and ($verdict = '' or v.verdict = $verdict)
"""


@dataclass(frozen=True)
class Found:
    """One page of the captions that were found.

    Attributes:
        captions: The captions of this page, the most serious verdict first, then by falling score.
        total: Number of captions on all pages.
        page: The number of this page, from 1.
        pages: Number of pages, at least 1.
    """

    captions: list[dict[str, Any]]
    total: int
    page: int
    pages: int


def search(source: Source, text: str = "", verdict: str = "", page: int = 1) -> Found:
    """Find the captions that contain a text, ignoring case.

    Args:
        source: The run.
        text: The text; "" finds all captions.
        verdict: A verdict that they must have; "" for any.
        page: The page to return, from 1. A page beyond the last one is the last one.
    """
    wanted = {"text": text, "verdict": verdict}
    [counted] = source.rows(f"select count(*) as total {SEARCH}", **wanted)
    pages = max(1, -(-counted["total"] // PAGE))
    page = min(max(page, 1), pages)
    captions = source.rows(
        f"""select c.caption_id, c.caption, c.row_count, v.verdict, v.risk, s.score, v.similarity {SEARCH}
        order by list_position($words, v.verdict) nulls last, s.score desc nulls last, c.caption_id
        limit $most offset $start""",
        **wanted,
        words=list(VERDICT_WORDS),
        most=PAGE,
        start=(page - 1) * PAGE,
    )
    return Found(captions, counted["total"], page, pages)
