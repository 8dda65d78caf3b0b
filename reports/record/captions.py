"""Read the captions that were looked at, and the families of those that were confirmed."""

from __future__ import annotations

from collections.abc import Sequence

from audit.schema import VERDICT_WORDS
from reports.record.model import Confirmed, Family, SelectedCaption, VerdictCount
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
