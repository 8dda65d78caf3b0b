"""Look up images or captions in a run, for example for a rights holder (docs/how-to/answer-a-rights-holder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from reports.record.source import HOST
from reports.stored_run import locate
from reports.views import connect

# One row per related caption and image: a dataset row has both, a generation of the caption copied the image, or a
# generation is a near miss. `similarity` is that of the generations to the image; null if the image is not among the
# nearest images of any of them.
_FOUND = """
with carried as (select distinct caption_id, image_id from rows),
made as (
    select caption_id, image_id, max(similarity) as similarity, max(region_similarity) as region_similarity
    from matches where purpose = 'discover' and embedder = $embedder group by all),
near as (
    select m.caption_id, m.image_id from verdicts v join matches m using (caption_id)
    where v.near_miss and m.purpose = 'discover' and m.embedder = $embedder
          and (m.similarity + coalesce(m.background, 0) >= $floor or m.region_similarity >= $region_floor)
    group by all),
pairs as (
    select caption_id, image_id, true as carries from carried
    union all
    select caption_id, image_id, false
    from (select caption_id, image_id from copied_images union select caption_id, image_id from near) c
    where not exists (from carried o where o.caption_id = c.caption_id and o.image_id = c.image_id)),
wanted as (select distinct caption_id, image_id, carries from pairs where {condition})
select w.image_id, w.caption_id, v.caption, v.row_count, w.carries, c.copy_type as copied, c.seed,
       coalesce(c.similarity, m.similarity) as similarity,
       coalesce(c.region_similarity, m.region_similarity) as region_similarity,
       n.caption_id is not null and c.copy_type is null as near_miss,
       v.verdict, v.risk, v.fresh_copies, v.fresh_generations
from wanted w join verdicts v on v.caption_id = w.caption_id
left join copied_images c on c.caption_id = w.caption_id and c.image_id = w.image_id
left join made m on m.caption_id = w.caption_id and m.image_id = w.image_id
left join near n on n.caption_id = w.caption_id and n.image_id = w.image_id
order by w.image_id, c.copy_type is null, n.caption_id is null, w.carries desc, v.caption, w.caption_id
"""
# The images of the matching rows, and the captions of matching rows without an image.
_OF_URL = """image_id in (select image_id from rows where {condition})
    or caption_id in (select caption_id from rows where image_id is null and {condition})"""


def of_images(run: str | Path, image_ids: Sequence[str]) -> pa.Table:
    """Return the captions whose rows have one of these images or that made the model copy one.

    The table has one row per caption and image, as do those of the functions below.
    """
    return _found(run, "list_contains($value, image_id)", list(image_ids))


def of_url(run: str | Path, url: str) -> pa.Table:
    """Return the captions and images that are related to the rows with this URL."""
    return _found(run, _OF_URL.format(condition="url = $value"), url)


def of_host(run: str | Path, host: str) -> pa.Table:
    """Return the captions and images that are related to the rows with a URL at this host or a subdomain of it."""
    condition = f"({HOST} = lower($value) or ends_with({HOST}, '.' || lower($value)))"
    return _found(run, _OF_URL.format(condition=condition), host)


def of_text(run: str | Path, text: str) -> pa.Table:
    """Return the captions that contain a text, ignoring case, and the images that are related to them."""
    condition = "caption_id in (select caption_id from verdicts where contains(lower(caption), lower($value)))"
    return _found(run, condition, text)


def _found(run: str | Path, condition: str, value: str | list[str]) -> pa.Table:
    manifest = locate(run).manifest()
    limits = manifest.deciding_thresholds
    floor, region_floor = (limits[kind].floor if kind in limits else None for kind in ("verbatim", "region"))
    values = {"value": value, "embedder": manifest.embedders[0], "floor": floor, "region_floor": region_floor}
    with connect(run) as connection:
        return connection.sql(_FOUND.format(condition=condition), params=values).to_arrow_table()
