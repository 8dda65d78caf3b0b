"""Show one caption of a run in a notebook: its verdict, and its generations beside the training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from audit.errors import AuditError
from reports.pages import environment
from reports.pictures import picture
from reports.query import Result
from reports.verdict_words import COLOURS, MEANINGS

_VERDICT = "from verdicts where caption = $caption or caption_id = $caption limit 1"
# The nearest training image of each generation.
_GENERATIONS = """
select g.purpose, g.seed, g.image, n.similarity, n.region_similarity
from generations g
left join (
    select distinct on (purpose, seed) m.purpose, m.seed, m.similarity, m.region_similarity
    from matches m join thresholds t using (embedder)
    where m.caption_id = $caption_id and t.deciding
    order by purpose, seed, rank
) n using (purpose, seed)
where g.caption_id = $caption_id and g.status = 'ok' and g.purpose in ('discover', 'fresh')
order by g.purpose, g.seed
"""
# The images that were copied, the best copy first. Without a copy, the one that is nearest to a threshold.
_IMAGES = """
select c.image_id, c.copy_type, c.similarity, c.region_similarity, e.image, e.file, e."row", e.key
from (
    select image_id, copy_type, similarity, region_similarity from copied_images where caption_id = $caption_id
    union all
    select image_id, null, if(copy_type = 'verbatim', similarity, null), if(copy_type = 'partial', similarity, null)
    from near_misses where caption_id = $caption_id and image_id is not null
) c
left join evidence e using (image_id)
order by c.copy_type desc, c.similarity desc, c.image_id
"""


@dataclass(frozen=True)
class ShownCaption:
    """Hold what a run found about a caption.

    Attributes:
        verdict: Its row of `verdicts`.
        gap: For an unconfirmed caption, how far its best match is below the threshold; None if nothing was compared.
        generations: Its generations: purpose, seed, image (PNG, or None if it is not kept) and the similarities to the
            nearest training image.
        images: The training images that they copied, or the nearest one: image_id, copy_type, the similarities, file,
            row, key and image (PNG, or None if it is not kept).
        blurred: Whether a notebook shows the training images blurred.
    """

    verdict: dict[str, Any]
    gap: float | None
    generations: list[dict[str, Any]]
    images: list[dict[str, Any]]
    blurred: bool

    def __repr__(self) -> str:
        row = self.verdict
        return f"{row['caption']!r}: {row['verdict']}, risk {row['risk']}, similarity {row['similarity']}"

    def _repr_html_(self) -> str:
        """Return HTML for a notebook. It runs no script, loads nothing, and escapes the caption."""
        pictured = {
            name: [row | {"picture": picture(row["image"], blurred)} for row in rows]
            for name, rows, blurred in (
                ("generations", self.generations, False),
                ("images", self.images, self.blurred),
            )
        }
        template = environment().get_template("shown_caption.html.j2")
        return template.render(verdict=self.verdict, gap=self.gap, meanings=MEANINGS, colours=COLOURS, **pictured)


def read_caption(sql: Callable[..., Result | None], caption: str, blurred: bool) -> ShownCaption:
    """Read what a run found about a caption.

    Args:
        sql: Runs a statement, with the values of its parameters.
        caption: The caption, or its caption_id.
        blurred: Whether a notebook shows the training images blurred.

    Raises:
        AuditError: The run has no such caption, or a part is damaged.
    """

    def rows(statement: str, **values: Any) -> list[dict[str, Any]]:
        result = sql(statement, **values)
        return result.arrow().to_pylist() if result is not None else []

    found = rows(_VERDICT, caption=caption)
    if not found:
        hint = "Search with `select caption from verdicts where caption ilike '%word%'`."
        raise AuditError(f"the run has no caption {caption!r}", where="show", hint=hint)
    of_caption = {"caption_id": found[0]["caption_id"]}
    miss = rows("select gap from near_misses where caption_id = $caption_id", **of_caption)
    gap = miss[0]["gap"] if miss else None
    return ShownCaption(found[0], gap, rows(_GENERATIONS, **of_caption), rows(_IMAGES, **of_caption), blurred)
