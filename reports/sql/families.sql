-- One row per family: confirmed captions that copied one training image or region. The highest risk comes first.
--
-- family: smallest caption_id of the family
-- verdict: `verbatim`, if any caption has this verdict, or `partial`
-- risk: the highest risk of its captions
-- captions: how many captions it has
-- rows: dataset rows that carry one of them
-- images: training images that they copied
-- similarity: highest similarity of a copy to its image
-- caption: the caption with the highest risk, and of those the one with the most rows
-- image_id: the training image that this caption copied best
with confirmed as (
    select v.*, c.similarity as copy_similarity, list_position(['high', 'medium', 'low'], v.risk) as place
    from verdicts v left join copied_images c using (caption_id, image_id)
    where v.verdict in ('verbatim', 'partial')
),
copied as (
    select c.family, count(distinct i.image_id) as images
    from confirmed c join copied_images i using (caption_id)
    group by c.family
)
select
    family,
    if(bool_or(verdict = 'verbatim'), 'verbatim', 'partial') as verdict,
    arg_min(risk, place) as risk,
    count(*) as captions,
    sum(row_count)::bigint as "rows",
    any_value(copied.images) as images,
    max(copy_similarity) as similarity,
    first(caption order by place, row_count desc, caption_id) as caption,
    first(image_id order by place, row_count desc, caption_id) as image_id
from confirmed left join copied using (family)
group by family
order by min(place), "rows" desc, family
