-- One row per host of the dataset's URLs. Hosts whose rows carry the most confirmed captions come first.
--
-- host: host of the URL, in lower case; null for rows without a URL
-- rows: dataset rows from the host
-- captions: captions that they carry
-- confirmed: of these, captions that make the model copy a training image
-- confirmed_rows: rows that carry a confirmed caption
-- copied_images: images of the host that any caption made the model copy
with sourced as (
    select r.file, r."row", r.caption_id, r.image_id,
           nullif(lower(regexp_extract(r.url, '^[^:]+://(?:[^/?#]*@)?([^/:?#]+)', 1)), '') as host
    from "rows" r
),
confirmed as (select caption_id from verdicts where verdict in ('verbatim', 'partial')),
copied as (select distinct image_id from copied_images)
select
    s.host,
    count(distinct (s.file, s."row")) as "rows",
    count(distinct s.caption_id) as captions,
    count(distinct c.caption_id) as confirmed,
    count(distinct (s.file, s."row")) filter (where c.caption_id is not null) as confirmed_rows,
    count(distinct i.image_id) as copied_images
from sourced s
left join confirmed c using (caption_id)
left join copied i on i.image_id = s.image_id
group by s.host
order by confirmed_rows desc, copied_images desc, "rows" desc, s.host
