"""Search the captions of a run, and read everything that the run knows about one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from audit.schema import VERDICT_WORDS
from reports.pictures import picture
from reports.record.source import Source

PAGE = 50  # captions
MOST_PICTURES, MOST_ROWS = 24, 50

# A run that has not judged yet has captions and no verdicts.
SEARCH = """
from captions c left join verdicts v using (caption_id) left join scores s using (caption_id)
where contains(lower(c.caption), lower($text)) and ($verdict = '' or v.verdict = $verdict)
"""
COLUMNS = """
c.caption_id, c.caption, c.row_count, v.verdict, v.risk, s.score, s.p_unseen, s.selected_by, v.similarity,
v.region_similarity, v.perturbation_margin, v.fresh_copies, v.fresh_generations, v.support, v.near_miss, v.family,
v.image_id, v.matched_own_image, v.error
"""
CONTROLS = "select count(*) as controls, count(*) filter (score >= $score) as above from control_scores"
GENERATIONS = """
select g.purpose, g.seed, g.status, g.error, g.image, max(m.similarity) as similarity,
       max(m.region_similarity) as region_similarity
from generations g
left join matches m on m.caption_id = g.caption_id and m.purpose = g.purpose and m.seed = g.seed
                       and m.embedder = $embedder
where g.caption_id = $id and g.purpose in ('discover', 'fresh')
group by all order by g.purpose, g.seed limit $most
"""
MATCHES = """
select m.purpose, m.seed, m.embedder, m.image_id, m.similarity, m.region_similarity, m.pixel_agreement, c.copy_type
from matches m left join copied_images c
    on c.caption_id = m.caption_id and c.image_id = m.image_id and c.seed = m.seed and m.purpose = 'discover'
       and m.embedder = $embedder
where m.caption_id = $id and m.purpose in ('discover', 'fresh')
order by c.copy_type is null, m.embedder <> $embedder, m.similarity desc nulls last, m.image_id, m.seed limit $most
"""
ROWS = 'select file, "row", key, url, image_id from rows where caption_id = $id order by file, "row" limit $most'
EVIDENCE = "select image from evidence where image_id = $image limit 1"
ERRORS = "select stage, kind, message from errors where caption_id = $id order by stage, kind, message limit $most"


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
        f"""select {COLUMNS} {SEARCH}
        order by list_position($words, v.verdict) nulls last, s.score desc nulls last, c.caption_id
        limit $most offset $start""",
        **wanted,
        words=list(VERDICT_WORDS),
        most=PAGE,
        start=(page - 1) * PAGE,
    )
    return Found(captions, counted["total"], page, pages)


def caption(source: Source, caption_id: str) -> dict[str, Any] | None:
    """Return what the run knows about a caption, with pictures as data URIs; None if it has no such caption.

    The training image is blurred unless the run shows training images (`report.show_training_images`).
    """
    joined = "from captions c left join verdicts v using (caption_id) left join scores s using (caption_id)"
    found = source.rows(f"select {COLUMNS} {joined} where c.caption_id = $id", id=caption_id)
    if not found:
        return None
    [row] = found
    known = {"id": caption_id, "most": MOST_ROWS}
    decides = {"embedder": source.embedder}
    controls = source.rows(CONTROLS, score=row["score"])[0] if row["score"] is not None else None
    generations = source.rows(GENERATIONS, **known | decides | {"most": MOST_PICTURES})
    for made in generations:
        made["picture"] = picture(made.pop("image"))
    evidence = source.rows(EVIDENCE, image=row["image_id"]) if row["image_id"] else []
    return row | {
        "controls": controls,
        "generations": generations,
        "training": picture(evidence[0]["image"], not source.manifest.shows_training_images) if evidence else None,
        "matches": source.rows(MATCHES, **known | decides),
        "rows": source.rows(ROWS, **known),
        "errors": source.rows(ERRORS, **known),
    }
