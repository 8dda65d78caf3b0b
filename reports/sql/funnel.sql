-- One row per step from all captions to those that copies were confirmed for, with what the step cost.
--
-- step: `captions` (all), `screened` (with a score), `selected`, `generated` (with an image), `confirmed` (with a copy)
--   or `reproduced` (with a copy from a fresh seed)
-- captions: captions that passed the step
-- rows: dataset rows that carry them
-- seconds: time of the stage `ingest`, `screen`, `select`, `generate` or `confirm`; null if it did not run. Fresh seeds
--   are part of `confirm`. The table `stages` has the other stages
with passed as (
    select
        v.row_count,
        unnest([
            {place: 1, step: 'captions', stage: 'ingest', passes: true},
            {place: 2, step: 'screened', stage: 'screen', passes: s.score is not null},
            {place: 3, step: 'selected', stage: 'select', passes: s.selected_by is not null},
            {place: 4, step: 'generated', stage: 'generate', passes: g.caption_id is not null},
            {place: 5, step: 'confirmed', stage: 'confirm', passes: v.verdict in ('verbatim', 'partial')},
            {place: 6, step: 'reproduced', stage: null, passes: v.support is not distinct from 'reproduced'}
        ], recursive := true)
    from verdicts v
    left join scores s using (caption_id)
    left join (select distinct caption_id from generations where purpose = 'discover' and status = 'ok') g
        on g.caption_id = v.caption_id
)
select
    step,
    count(*) filter (where passes) as captions,
    coalesce(sum(row_count) filter (where passes), 0)::bigint as "rows",
    any_value(stages.seconds) as seconds
from passed left join stages using (stage)
group by place, step
order by place
