-- One row per step from all captions to those that copies were confirmed for, with what the step cost.
--
-- step: `captions` (all), `screened` (with a score), `selected`, `generated` (with an image), `confirmed` (with a copy)
--   or `reproduced` (with a copy from a fresh seed)
-- captions: captions that passed the step
-- rows: dataset rows that carry them
-- seconds: time of the stage `ingest`, `screen`, `select`, `generate` or `confirm`; null if it did not run. Fresh seeds
--   are part of `confirm`. The table `stages` has the other stages
with steps(place, step, stage) as (
    values (1, 'captions', 'ingest'), (2, 'screened', 'screen'), (3, 'selected', 'select'),
           (4, 'generated', 'generate'), (5, 'confirmed', 'confirm'), (6, 'reproduced', null)
),
passed as (
    select
        v.row_count,
        unnest([
            {step: 'captions', passes: true},
            {step: 'screened', passes: s.score is not null},
            {step: 'selected', passes: s.selected_by is not null},
            {step: 'generated', passes: g.caption_id is not null},
            {step: 'confirmed', passes: v.verdict in ('verbatim', 'partial')},
            {step: 'reproduced', passes: v.support is not distinct from 'reproduced'}
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
from steps left join passed using (step) left join stages using (stage)
group by place, step
order by place
