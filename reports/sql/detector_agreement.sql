-- One row per pair of detectors: how alike they rank the captions that both have a value for.
--
-- Detectors are the columns of `screen` and `generations` with one number per caption (the mean over seeds), and
-- `score`, the score that captions were selected by. Only selected captions have columns of `generations`.
--
-- detector: a detector
-- other_detector: another one, later in the alphabet
-- captions: captions that both have a value for
-- rank_correlation: Spearman's rank correlation, from -1 to 1; about 0 if they have nothing in common. It is negative
--   if one of them is small where the other is large, and null if one of them is the same for all captions
with measured as (
    select s.caption_id, j.key as detector, j.value::double as value
    from (select caption_id, to_json(screen) as content from screen where status = 'ok') s, json_each(s.content) j
    where j.type = 'DOUBLE'
    union all
    select g.caption_id, j.key, j.value::double
    from (
        select caption_id, to_json(columns_of_generations) as content
        from (select * exclude (image, region) from generations where purpose = 'discover' and status = 'ok')
            columns_of_generations
    ) g, json_each(g.content) j
    where j.type = 'DOUBLE'
    union all
    select caption_id, 'score', score from scores where score is not null
),
of_caption as (
    select caption_id, detector, avg(value) as value from measured group by caption_id, detector
),
pairs as (
    select a.detector, b.detector as other_detector, a.value as one, b.value as other
    from of_caption a join of_caption b using (caption_id)
    where a.detector < b.detector
),
ranked as (
    -- captions with the same value have the mean of their ranks
    select
        detector, other_detector,
        rank() over (partition by detector, other_detector order by one)
            + count(*) over (partition by detector, other_detector, one) / 2 as one_rank,
        rank() over (partition by detector, other_detector order by other)
            + count(*) over (partition by detector, other_detector, other) / 2 as other_rank
    from pairs
)
select detector, other_detector, count(*) as captions, nullif(corr(one_rank, other_rank), 'nan') as rank_correlation
from ranked
group by detector, other_detector
order by abs(rank_correlation) desc nulls last, detector, other_detector
