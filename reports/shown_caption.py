"""Read everything that a run knows about one caption, and show it in a notebook. The pages of a run show it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reports.pages import environment
from reports.pictures import picture
from reports.record.source import Source
from reports.verdict_words import COLOURS, MEANINGS

MOST = 50  # generations, images, matches, rows and errors of a caption, each

# A run that has not judged yet has captions and no verdicts.
_VERDICT = """
select c.*, v.* exclude (caption_id, caption, row_count, score, p_unseen), s.score, s.p_unseen, s.selected_by
from captions c left join verdicts v using (caption_id) left join scores s using (caption_id)
where c.caption = $caption or c.caption_id = $caption limit 1
"""
_CONTROLS = "select count(*) as controls, count(*) filter (score >= $score) as above from control_scores"
_GENERATIONS = """
select g.purpose, g.seed, g.status, g.error, g.image, m.similarity, m.region_similarity
from generations g
left join (
    select purpose, seed, max(similarity) as similarity, max(region_similarity) as region_similarity
    from matches where caption_id = $id and embedder = $embedder group by all
) m using (purpose, seed)
where g.caption_id = $id and g.purpose in ('discover', 'fresh')
order by g.purpose, g.seed limit $most
"""
# The images that were copied, the best copy first. Without a copy, the one that is nearest to a threshold. An image
# that several dataset rows have is shown once.
_IMAGES = """
select distinct on (c.image_id)
       c.image_id, c.copy_type, c.similarity, c.region_similarity, e.image, e.file, e."row", e.key
from (
    select image_id, copy_type, similarity, region_similarity from copied_images where caption_id = $id
    union all
    select image_id, null, if(copy_type = 'verbatim', similarity, null), if(copy_type = 'partial', similarity, null)
    from near_misses where caption_id = $id and image_id is not null
) c
left join evidence e using (image_id)
order by c.copy_type desc, c.similarity desc, c.image_id, e.file, e."row" limit $most
"""
_MATCHES = """
select m.purpose, m.seed, m.embedder, m.image_id, m.similarity, m.region_similarity, m.pixel_agreement, c.copy_type
from matches m left join copied_images c
    on c.caption_id = m.caption_id and c.image_id = m.image_id and c.seed = m.seed and m.purpose = 'discover'
       and m.embedder = $embedder
where m.caption_id = $id and m.purpose in ('discover', 'fresh')
order by c.copy_type is null, m.embedder <> $embedder, m.similarity desc nulls last, m.image_id, m.seed limit $most
"""
_ROWS = 'select file, "row", key, url, image_id from rows where caption_id = $id order by file, "row" limit $most'
_ERRORS = "select stage, kind, message from errors where caption_id = $id order by stage, kind, message limit $most"


@dataclass(frozen=True)
class ShownCaption:
    """Hold what a run knows about a caption. Lists have at most MOST entries.

    Attributes:
        verdict: Its row of `verdicts`, with score, p-value and `selected_by` from `scores`. If the run has not judged
            yet, the columns of `verdicts` are None.
        gap: For an unconfirmed caption, how far its best match is below the threshold; None if nothing was compared.
        controls: Number of control captions, and of those `above`, which score as high; None without a score.
        generations: Its generations: purpose, seed, status, error, image (PNG, or None if it is not kept) and the
            highest similarities to a training image.
        images: The training images that they copied, or the nearest one: image_id, copy_type, the similarities, file,
            row, key and image (PNG, or None if it is not kept).
        matches: The most similar training images of each generation, copies first.
        rows: Dataset rows with the caption: file, row, key, url and image_id.
        errors: What failed: stage, kind and message.
        blurred: Whether pages show the training images blurred.
    """

    verdict: dict[str, Any]
    gap: float | None
    controls: dict[str, int] | None
    generations: list[dict[str, Any]]
    images: list[dict[str, Any]]
    matches: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    blurred: bool

    def pictured(self) -> dict[str, list[dict[str, Any]]]:
        """Return the generations and the training images with pictures for a page."""
        return {
            "generations": [row | {"picture": picture(row["image"])} for row in self.generations],
            "images": [row | {"picture": picture(row["image"], self.blurred)} for row in self.images],
        }

    def __repr__(self) -> str:
        row = self.verdict
        return f"{row['caption']!r}: {row['verdict']}, risk {row['risk']}, similarity {row['similarity']}"

    def _repr_html_(self) -> str:
        """Return HTML for a notebook. It runs no script, loads nothing, and escapes the caption."""
        template = environment().get_template("shown_caption.html.j2")
        content = {"verdict": self.verdict, "gap": self.gap, **self.pictured()}
        return template.render(meanings=MEANINGS, colours=COLOURS, most=MOST, **content)


def read_caption(source: Source, caption: str) -> ShownCaption | None:
    """Read what a run knows about a caption.

    Args:
        source: The run.
        caption: The caption, or its caption_id.

    Returns:
        What it knows; None if the run has no such caption.
    """
    found = source.rows(_VERDICT, caption=caption)
    if not found:
        return None
    [verdict] = found
    of_caption, most, deciding = {"id": verdict["caption_id"]}, {"most": MOST}, {"embedder": source.embedder}
    miss = source.rows("select gap from near_misses where caption_id = $id", **of_caption)
    return ShownCaption(
        verdict=verdict,
        gap=miss[0]["gap"] if miss else None,
        controls=None if verdict["score"] is None else source.rows(_CONTROLS, score=verdict["score"])[0],
        generations=source.rows(_GENERATIONS, **of_caption, **most, **deciding),
        images=source.rows(_IMAGES, **of_caption, **most),
        matches=source.rows(_MATCHES, **of_caption, **most, **deciding),
        rows=source.rows(_ROWS, **of_caption, **most),
        errors=source.rows(_ERRORS, **of_caption, **most),
        blurred=not source.manifest.shows_training_images,
    )
