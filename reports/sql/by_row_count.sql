-- One row per range of row counts: how verdicts depend on how often the dataset repeats a caption.
--
-- row_counts: dataset rows that carry the caption
-- captions: captions with so many rows
-- rows: their rows
-- selected: captions for which images were generated. They are no random sample: most were selected by their score
-- verbatim: of these, captions with the verdict `verbatim`
-- partial: captions with the verdict `partial`
-- unconfirmed: captions with the verdict `unconfirmed`
with ranged as (
    select v.verdict, v.row_count, s.selected_by,
           case when v.row_count < 2 then '1' when v.row_count < 4 then '2 to 3' when v.row_count < 10 then '4 to 9'
                when v.row_count < 30 then '10 to 29' else '30 or more' end as row_counts
    from verdicts v left join scores s using (caption_id)
)
select
    row_counts,
    count(*) as captions,
    sum(row_count)::bigint as "rows",
    count(selected_by) as selected,
    count(*) filter (where verdict = 'verbatim') as verbatim,
    count(*) filter (where verdict = 'partial') as partial,
    count(*) filter (where verdict = 'unconfirmed') as unconfirmed
from ranged
group by row_counts
order by min(row_count)
