-- One row per unconfirmed caption, with the match that is nearest to a threshold. The nearest comes first.
--
-- caption_id: the caption
-- caption: its text
-- row_count: dataset rows that carry it
-- near_miss: whether a generation is at or beyond the floor, so that it looks like a copy to the embedder
-- copy_type: which threshold is nearest: that of copies of a whole image (`verbatim`) or of a region (`partial`)
-- similarity: similarity to the training image, whole or within the region
-- threshold: the threshold from which on it would be a copy
-- gap: threshold minus similarity. 0 or less is unconfirmed for another reason: `region_agreement`, or the floor
-- region_agreement: share of the region in which the two agree pixel by pixel; null for whole images
-- seed: seed of the generation
-- image_id: the training image
with candidates as (
    select m.caption_id, m.seed, m.image_id, t.copy_type, t.threshold,
           case t.copy_type when 'verbatim' then m.similarity else m.region_similarity end as similarity,
           case t.copy_type when 'partial' then m.region_agreement end as region_agreement
    from matches m join thresholds t using (embedder)
    where m.purpose = 'discover' and t.deciding
),
nearest as (
    select distinct on (caption_id) *, threshold - similarity as gap
    from candidates
    where similarity is not null
    order by caption_id, gap nulls last, similarity desc, copy_type desc, seed, image_id
)
select
    v.caption_id, v.caption, v.row_count, v.near_miss,
    n.copy_type, n.similarity, n.threshold, n.gap, n.region_agreement, n.seed, n.image_id
from verdicts v left join nearest n using (caption_id)
where v.verdict = 'unconfirmed'
order by n.gap nulls last, v.caption_id
