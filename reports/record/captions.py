"""Read the captions that were looked at, and the families of those that were confirmed."""

from __future__ import annotations

from collections.abc import Sequence

from audit.schema import VERDICT_WORDS
from reports.record.part import Part
from reports.record.source import HOST, Source
from reports.verdict_words import MEANINGS

MAX_SELECTED, MAX_HOSTS, MAX_NEAR = 20_000, 5, 20

SELECTED = f"""
with looked_at as (
    select *, verdict in ('verbatim', 'partial') as confirmed, list_position(['high', 'medium', 'low'], risk) as rank,
           greatest(similarity - $verbatim::double, region_similarity - $region::double) as margin
    from verdicts where verdict <> 'not_selected'),
shown as (
    select *, row_number() over (order by confirmed desc, family_rank, case when confirmed then family_rows end desc,
                                          family_margin desc, kin, rank, margin desc, caption_id) as place
    from (select *, coalesce(family, caption_id) as kin, min(rank) over kindred as family_rank,
                 sum(row_count) over kindred as family_rows, max(margin) over kindred as family_margin
          from looked_at window kindred as (partition by coalesce(family, caption_id)))
    qualify place <= $most),
placed as (
    select caption_id, min({{'file': file, 'row': "row"}}) as first,
           list_sort(list(distinct {HOST}) filter ({HOST} <> '')) as hosts
    from rows join shown using (caption_id) group by all)
select caption_id, caption, verdict, risk, row_count, scores.selected_by, shown.score, shown.p_unseen, similarity,
       region_similarity, margin, coalesce(near_miss, false) as near_miss, image_id, family, fresh_copies,
       fresh_generations, support, coalesce(placed.hosts[:{MAX_HOSTS}], []) as hosts,
       coalesce(len(placed.hosts), 0) as host_count, placed.first.file as file, placed.first.row as row, error
from shown left join placed using (caption_id) left join scores using (caption_id)
order by place
"""


class VerdictCount(Part):
    """The number of captions with a verdict, and of their dataset rows."""

    verdict: str
    meaning: str
    captions: int
    rows: int


class Confirmed(Part):
    """Counts over the confirmed captions."""

    captions: int
    families: int
    images: int
    not_reproduced: int  # no fresh seed copied again
    untested: int  # no fresh seed was tried


class SelectedCaption(Part):
    """A caption for which images were generated, or that could not be audited.

    Attributes:
        margin: Similarity less its threshold, for the whole image or a region, whichever is higher. Below 0 if neither
            reaches its threshold.
        family: The family of a confirmed caption; the caption itself if nothing else copies the same image.
        selected_by: budget | sample | None.
        hosts: Hosts of the URLs of its dataset rows, at most MAX_HOSTS of them.
        file, row: The first of its dataset rows.
        p_unseen: p-value against the control captions.
    """

    caption_id: str
    caption: str
    verdict: str
    risk: str
    row_count: int
    selected_by: str | None
    score: float | None
    p_unseen: float | None
    similarity: float | None
    region_similarity: float | None
    margin: float | None
    near_miss: bool
    image_id: str | None
    family: str | None
    fresh_copies: int | None
    fresh_generations: int | None
    support: str | None
    hosts: list[str]
    host_count: int
    file: str | None
    row: int | None
    error: str | None


class Family(Part):
    """Confirmed captions that copy the same training image, or the same region of several.

    Attributes:
        family: The smallest caption_id in it.
        risk: The highest risk of its captions.
        captions: Number of captions in it.
        rows: Number of their dataset rows.
        images: Number of training images that they copy.
    """

    family: str
    risk: str
    captions: int
    rows: int
    images: int


def selected(source: Source) -> tuple[list[SelectedCaption], int]:
    """Return the captions that were looked at, the most serious first, and how many there are in all."""
    [total] = source.rows("select count(*) as captions from verdicts where verdict <> 'not_selected'")
    limits = {kind: source.threshold(kind) for kind in ("verbatim", "region")}
    found = source.rows(SELECTED, most=MAX_SELECTED, **limits)
    return [SelectedCaption(**row) for row in found], total["captions"]


def families(source: Source, selected: Sequence[SelectedCaption]) -> list[Family]:
    """Return the families of the confirmed captions, in the order in which `selected` names them."""
    found = source.rows(
        """select family, arg_min(risk, rank) as risk, count(*) as captions, sum(row_count)::bigint as rows,
                  count(distinct image_id) as images
           from (select *, list_position(['high', 'medium', 'low'], risk) as rank from verdicts
                 where verdict in ('verbatim', 'partial'))
           group by family"""
    )
    by_name = {row["family"]: Family(**row) for row in found}
    return [by_name[family] for family in dict.fromkeys(row.family for row in selected) if family in by_name]


def confirmed(source: Source) -> Confirmed:
    """Count the confirmed captions, their families and images, and those without support by fresh seeds."""
    [row] = source.rows(
        """select count(*) as captions, count(distinct family) as families, count(distinct image_id) as images,
                  count(*) filter (support = 'not reproduced') as not_reproduced,
                  count(*) filter (support = 'untested') as untested
           from verdicts where verdict in ('verbatim', 'partial')"""
    )
    return Confirmed(**row)


def near_misses(source: Source) -> int:
    """Count the unconfirmed captions that look like copies to the embedder."""
    [row] = source.rows("select count(*) as captions from verdicts where near_miss")
    return row["captions"]


def nearest_misses(selected: Sequence[SelectedCaption]) -> list[str]:
    """Return the caption_ids of the unconfirmed captions that come closest to a threshold, the closest first."""
    unconfirmed = [row for row in selected if row.verdict == "unconfirmed" and row.margin is not None]
    unconfirmed.sort(key=lambda row: (-(row.margin or 0), row.caption_id))
    return [row.caption_id for row in unconfirmed[:MAX_NEAR]]


def verdict_counts(source: Source) -> list[VerdictCount]:
    """Count the captions and dataset rows of each verdict that occurs."""
    sql = "select verdict, count(*) as captions, sum(row_count)::bigint as rows from verdicts group by all"
    found = {row["verdict"]: row for row in source.rows(sql)}
    return [VerdictCount(**found[word], meaning=MEANINGS[word]) for word in VERDICT_WORDS if word in found]
