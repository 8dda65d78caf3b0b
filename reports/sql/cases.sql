-- One row per confirmed caption, with the training image that it copied best. The highest risk comes first.
--
-- caption_id: the caption
-- caption: its text
-- row_count: dataset rows that carry it
-- verdict: `verbatim`, if a generation copied the whole image, or `partial`, if it copied a region
-- risk: `high`, `medium` or `low`
-- support: whether fresh seeds copied again: `reproduced`, `not reproduced` or `untested`
-- fresh_copies: how many fresh generations are copies
-- fresh_generations: of how many
-- family: captions that copied one training image or region have the same family
-- score: score of the screen; larger is less like control captions
-- p_unseen: p-value of the score against control captions
-- seed: seed of the generation that copied the image: join `generations` on caption_id and seed to see it
-- similarity: similarity of that generation to the image
-- region_similarity: similarity within the region; null if there is none to compare
-- pixel_agreement: share of the picture in which the two agree pixel by pixel
-- image_id: the training image: join `evidence` on it to see it
-- file: file of the dataset that holds the image
-- row: its row or sample in the file, from 0
-- key: key of the sample
-- url: source of the sample
select
    v.caption_id, v.caption, v.row_count, v.verdict, v.risk, v.support, v.fresh_copies, v.fresh_generations, v.family,
    v.score, v.p_unseen, c.seed, c.similarity, c.region_similarity, c.pixel_agreement, v.image_id,
    e.file, e."row", e.key, e.url
from verdicts v
left join copied_images c using (caption_id, image_id)
left join evidence e on e.image_id = v.image_id
where v.verdict in ('verbatim', 'partial')
order by list_position(['high', 'medium', 'low'], v.risk), v.row_count desc, v.caption_id
