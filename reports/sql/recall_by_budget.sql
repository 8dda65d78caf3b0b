-- One row per confirmed caption, by falling score: the budget that includes it, and what that budget finds.
--
-- The captions that were not selected have no verdict. A confirmed caption of the audit sample stands for
-- 1 / inclusion_probability captions (Horvitz and Thompson, 1952), one of the budget for itself. The recall is such an
-- estimate, without an interval. Without an audit sample it refers to the selected captions alone. `crossaudit claims`
-- has a lower bound.
--
-- budget: smallest number of captions, taken by falling score, that includes the caption
-- score: its score
-- caption_id: the caption
-- selected_by: how it was selected: `budget` or `sample`
-- confirmed: confirmed captions that this budget includes
-- recall: estimated share of all captions that make the model copy that this budget includes
with ranked as (
    -- captions with the same score are in the budget together
    select *, count(*) over (order by score desc nulls last range between unbounded preceding and current row) as budget
    from scores
),
weighted as (
    select r.*, case r.selected_by when 'budget' then 1 else 1 / r.inclusion_probability end as weight
    from ranked r join verdicts v using (caption_id)
    where v.verdict in ('verbatim', 'partial')
)
select
    budget, score, caption_id, selected_by,
    count(*) over upto as confirmed,
    sum(weight) over upto / sum(weight) over () as recall
from weighted
window upto as (order by score desc nulls last range between unbounded preceding and current row)
order by budget, caption_id
