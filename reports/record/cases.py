"""Read the confirmed captions that are shown with images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from audit.schema import CONFIRMED_WORDS
from reports.pictures import Picture, picture
from reports.record.captions import SelectedCaption
from reports.record.commands import explain, reproduce
from reports.record.part import Part
from reports.record.source import HOST, Source

PER_FAMILY, FRESH, MAX_PLACES = 3, 2, 10
MAX_IMAGE_BYTES = 20_000_000  # all images of the cases together

DETAILS = """
select v.caption_id, v.image_id, v.matched_own_image, c.seed, c.region, c.pixel_agreement,
       case when v.verdict = 'verbatim' or c.similarity >= $limit::double then 'verbatim' else 'region' end as kind,
       case when kind = 'verbatim' then coalesce(c.similarity, v.similarity)
            else coalesce(c.region_similarity, v.region_similarity) end as similarity
from verdicts v left join copied_images c using (caption_id, image_id) where caption_id in $ids
"""
GENERATIONS = """
select g.caption_id, g.purpose, g.seed, any_value(g.image) as image, max(m.similarity) as similarity,
       max(m.region_similarity) as region_similarity, {attention} as token_attention
from generations g join verdicts v using (caption_id)
left join matches m on m.caption_id = g.caption_id and m.purpose = g.purpose and m.seed = g.seed
                       and m.embedder = $embedder and m.image_id = v.image_id
where g.caption_id in $ids and g.purpose in ('discover', 'fresh') and g.image is not null
group by all order by g.caption_id, g.purpose, g.seed
"""
OTHERS = """
select m.caption_id, m.embedder, max(m.similarity) as similarity
from matches m join verdicts v using (caption_id, image_id)
where caption_id in $ids and m.purpose = 'discover' and m.embedder <> $embedder group by all order by m.embedder
"""
EVIDENCE = f"""
select image_id, file, "row", key, url, nullif({HOST}, '') as host, image from evidence where image_id in $images
order by image_id, file, "row"
"""
PLACES = f"""
select caption_id, file, "row", key, url, nullif({HOST}, '') as host from rows where caption_id in $ids
qualify row_number() over (partition by caption_id order by file, "row") <= {MAX_PLACES} order by file, "row"
"""


class Place(Part):
    """A row of the dataset."""

    file: str | None
    row: int | None
    key: str | None
    url: str | None
    host: str | None


class Generation(Part):
    """A generated image of a case, and its similarity to the training image of the case."""

    purpose: Literal["discover", "fresh"]
    seed: int
    similarity: float | None
    picture: Picture | None


class OtherEmbedder(Part):
    """What another embedder says about the same pair of images."""

    embedder: str
    similarity: float | None


class Case(Part):
    """A confirmed caption with its images. `caption_id` names its row in `selected`.

    Attributes:
        image_id: The training image that it copies.
        kind: What decided: `verbatim` (the whole image) or `region`.
        similarity: The similarity that decided, of the generation in `generations[0]`.
        threshold: The threshold that it reached.
        pixel_agreement: Share of the picture in which the two images agree.
        matched_own_image: Whether a dataset row has both the caption and the image.
        generations: The generation that was confirmed, then some with fresh seeds.
        training: The training image; blurred unless the run shows training images.
        region: Where the two images agree: white on black. None if the run has no region.
        image_places: Where the dataset has the training image.
        caption_places: Where the dataset has the caption; at most MAX_PLACES of `row_count` rows.
        token_attention: Attention to each token of the prompt, if the run measured it.
        explain: The command that shows how the model processes the caption; None in a redacted edition.
        reproduce: The command that generates the case again; None in a redacted edition.
    """

    caption_id: str
    image_id: str
    kind: Literal["verbatim", "region"]
    similarity: float | None
    threshold: float | None
    pixel_agreement: float | None
    matched_own_image: bool | None
    others: list[OtherEmbedder]
    generations: list[Generation]
    training: Picture | None
    region: Picture | None
    image_places: list[Place]
    caption_places: list[Place]
    token_attention: list[float] | None
    explain: str | None
    reproduce: str | None


def cases(source: Source, selected: Sequence[SelectedCaption], top: int) -> list[Case]:
    """Return the confirmed captions to show: at most PER_FAMILY per family, and as many as MAX_IMAGE_BYTES allow.

    Args:
        source: The run.
        selected: The captions that were looked at, the most serious first.
        top: The largest number of cases.
    """
    chosen = _chosen(selected, top)
    if not chosen:
        return []
    ids = [row.caption_id for row in chosen]
    images = [row.image_id for row in chosen]
    embedder, limit = source.embedder, source.threshold("verbatim")
    details = {row["caption_id"]: row for row in source.rows(DETAILS, ids=ids, limit=limit)}
    columns = {row["column_name"] for row in source.rows("describe generations")}
    attention = "any_value(g.token_attention)" if "token_attention" in columns else "null"
    generations = _grouped(source, GENERATIONS.format(attention=attention), "caption_id", ids=ids, embedder=embedder)
    others = _grouped(source, OTHERS, "caption_id", ids=ids, embedder=embedder)
    evidence = _grouped(source, EVIDENCE, "image_id", images=images)
    places = _grouped(source, PLACES, "caption_id", ids=ids)
    found, used = [], 0
    for row in chosen:
        detail = details[row.caption_id]
        case = _case(source, row, detail, generations[row.caption_id], evidence[detail["image_id"]])
        case.others = [OtherEmbedder(**other) for other in others[row.caption_id]]
        case.caption_places = [Place(**place) for place in places[row.caption_id]]
        used += sum(len(image.uri) for image in _pictures(case))
        if used > MAX_IMAGE_BYTES:
            break
        found.append(case)
    return found


def _chosen(selected: Sequence[SelectedCaption], top: int) -> list[SelectedCaption]:
    seen: Counter[str] = Counter()
    chosen = []
    for row in selected:
        family = row.family or row.caption_id
        if row.verdict in CONFIRMED_WORDS and seen[family] < PER_FAMILY:
            seen[family] += 1
            chosen.append(row)
    return chosen[:top]


def _grouped(source: Source, sql: str, key: str, **values: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a query by the value of a column, without that column."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in source.rows(sql, **values):
        found[row.pop(key)].append(row)
    return found


def _case(
    source: Source,
    row: SelectedCaption,
    detail: dict[str, Any],
    generations: list[dict[str, Any]],
    evidence: list[dict[str, Any]],
) -> Case:
    kind = detail["kind"]
    fresh = [made for made in generations if made["purpose"] == "fresh"][:FRESH]
    first = [made for made in generations if made["purpose"] == "discover" and made["seed"] == detail["seed"]]
    shown = [
        Generation(
            purpose=made["purpose"],
            seed=made["seed"],
            similarity=made["similarity" if kind == "verbatim" else "region_similarity"],
            picture=picture(made["image"]),
        )
        for made in [*first, *fresh]
    ]
    return Case(
        caption_id=row.caption_id,
        image_id=detail["image_id"],
        kind=kind,
        similarity=detail["similarity"],
        threshold=source.threshold(kind),
        pixel_agreement=detail["pixel_agreement"],
        matched_own_image=detail["matched_own_image"],
        others=[],
        generations=shown,
        training=picture(evidence[0]["image"], not source.manifest.shows_training_images) if evidence else None,
        region=picture(detail["region"]),
        image_places=[Place(**{name: place[name] for name in Place.model_fields}) for place in evidence],
        caption_places=[],
        token_attention=first[0]["token_attention"] if first else None,
        explain=explain(source, row.caption, detail["seed"]),
        reproduce=reproduce(source, row.caption),
    )


def _pictures(case: Case) -> Iterator[Picture]:
    shown = [case.training, case.region, *(made.picture for made in case.generations)]
    yield from (image for image in shown if image)
