"""Read what the report shows about mitigation: the settings, the best one, and pairs of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports.pictures import Picture, picture
from reports.record.part import Part
from reports.record.source import Source

MOST_PAIRS = {"confirmed": 12, "ordinary": 6}
# The setting whose images are shown may reduce the CLIP score of ordinary captions by this share.
TOLERATED = 0.03

SETTINGS = """
select c.* exclude (caption_set, images), o.clip_score as ordinary_clip, o.diversity as ordinary_diversity
from mitigation_summary c
left join (from mitigation_summary where caption_set = 'ordinary') o using (method, settings)
where c.caption_set = 'confirmed'
order by c.method <> 'none', method, settings
"""

PAIRS = """
select p.caption_id, p.caption, p.seed, p.similarity as plain_similarity, m.similarity, m.is_copy,
       p.image as plain, m.image as mitigated, e.image as training
from mitigation p
join mitigation m on m.caption_set = p.caption_set and m.caption_id = p.caption_id and m.seed = p.seed
left join (select image_id, any_value(image) as image from evidence group by all) e on e.image_id = p.image_id
where p.caption_set = $caption_set and p.method = 'none' and m.method = $method and m.settings = $settings
      and p.image is not null and m.image is not null
order by p.similarity desc, p.caption_id limit $most
"""


class MitigationSetting(Part):
    """What one mitigation setting does to confirmed captions, and to ordinary ones."""

    method: str
    settings: str
    captions: int
    captions_above: int
    captions_near: int
    share_above: float
    share_above_low: float
    share_above_high: float
    median_similarity: float | None
    clip_score: float | None
    diversity: float | None
    ordinary_clip: float | None
    ordinary_diversity: float | None
    seconds_per_image: float | None


class MitigationPair(Part):
    """A caption without and with the best mitigation setting."""

    caption_set: str
    caption_id: str
    caption: str
    seed: int
    plain_similarity: float | None
    similarity: float | None
    is_copy: bool  # with mitigation
    plain: Picture | None
    mitigated: Picture | None
    training: Picture | None


class Mitigation(Part):
    """What `crossaudit mitigate` measured. `tolerated` is the share of CLIP score that the best setting may cost."""

    settings: list[MitigationSetting]
    best: MitigationSetting | None
    tolerated: float
    pairs: list[MitigationPair]
    seeds: list[int]


def read(source: Source) -> Mitigation | None:
    """Return the settings, the best one and pairs of images, or None if nothing was measured."""
    settings = source.rows(SETTINGS)
    if not settings:
        return None
    best, pairs = best_of(settings), []
    if best:
        values = {"method": best["method"], "settings": best["settings"]}
        for caption_set, most in MOST_PAIRS.items():
            for pair in source.rows(PAIRS, caption_set=caption_set, most=most, **values):
                for name in ("plain", "mitigated"):
                    pair[name] = picture(pair[name])
                pair["training"] = picture(pair["training"], not source.manifest.shows_training_images)
                pairs.append(MitigationPair(caption_set=caption_set, **pair))
    return Mitigation(
        settings=[MitigationSetting(**setting) for setting in settings],
        best=MitigationSetting(**best) if best else None,
        tolerated=TOLERATED,
        pairs=pairs,
        seeds=source.manifest.mitigation.seeds if source.manifest.mitigation else [],
    )


def best_of(settings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the mitigated setting with the fewest copies at an acceptable cost, or None if there is no such setting.

    The cost is acceptable if ordinary captions lose at most TOLERATED of their CLIP score without mitigation, or if
    that score is unknown. If no setting has an acceptable cost, all of them are considered. Ties go to the higher CLIP
    score, then to the name that comes first.
    """
    mitigated = [setting for setting in settings if setting["method"] != "none"]
    plain = next((setting["ordinary_clip"] for setting in settings if setting["method"] == "none"), None)
    if plain is not None:
        least = plain - TOLERATED * abs(plain)
        known = [setting for setting in mitigated if setting["ordinary_clip"] is not None]
        mitigated = [setting for setting in known if setting["ordinary_clip"] >= least] or mitigated

    def order(setting: dict[str, Any]) -> tuple[float, float, str, str]:
        clip = setting["ordinary_clip"]
        return setting["share_above"], -clip if clip is not None else 0.0, setting["method"], setting["settings"]

    return min(mitigated, key=order, default=None)
