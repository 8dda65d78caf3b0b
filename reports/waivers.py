"""Waivers: confirmed copies that somebody answers for, so that `crossaudit gate` does not count them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal

import duckdb
from pydantic import BaseModel, ConfigDict, Field, model_validator

_TARGETS = ("caption_id", "family", "image_id")
_Text = Annotated[str, Field(min_length=1)]
# The images are all those that the generations of the caption copied, not only the one in its verdict.
_CONFIRMED = """
select v.caption_id, v.family, list(distinct c.image_id) filter (c.image_id is not null) as images
from verdicts v left join copied_images c using (caption_id)
where v.verdict in ('verbatim', 'partial') group by all
"""


class Waiver(BaseModel):
    """Say why copies are acceptable, who answers for that, and until when.

    Attributes:
        caption_id: Covers this caption, whatever it copies.
        family: Covers every caption of this family.
        image_id: Covers the captions that copy this image and no image without a waiver.
        reason: Why the copies are acceptable.
        text: Details; required if the reason is `other`.
        owner: Who answers for the waiver.
        expires: The last day on which the waiver holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    caption_id: _Text | None = None
    family: _Text | None = None
    image_id: _Text | None = None
    reason: Literal["logo", "flag", "public domain", "own work", "other"]
    text: _Text | None = None
    owner: _Text
    expires: date

    @model_validator(mode="after")
    def _complete(self) -> Waiver:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"it names {', '.join(given) or 'nothing'}; name exactly one of {', '.join(_TARGETS)}")
        if self.reason == "other" and self.text is None:
            raise ValueError("the reason `other` needs a text")
        return self

    @property
    def covers(self) -> str:
        """What the waiver covers, such as `family 3f2a`."""
        return next(f"{name} {getattr(self, name)}" for name in _TARGETS if getattr(self, name) is not None)

    @property
    def grounds(self) -> str:
        """The reason with its details."""
        return f"{self.reason}: {self.text}" if self.text else self.reason


def waived_captions(connection: duckdb.DuckDBPyConnection, waivers: Sequence[Waiver]) -> dict[str, Waiver]:
    """Find the confirmed captions of a run that waivers cover.

    Args:
        connection: The views of the run.
        waivers: The waivers. If several cover a caption, one for the caption comes before one for its family, and that
            before one for its images.

    Returns:
        The waiver of each covered caption, by caption_id.
    """
    of: dict[str, dict[str, Waiver]] = {name: {} for name in _TARGETS}
    for waiver in waivers:
        for name in _TARGETS:
            of[name].setdefault(getattr(waiver, name), waiver)
    covered = {}
    for caption, family, images in connection.execute(_CONFIRMED).fetchall() if waivers else []:
        found = of["caption_id"].get(caption) or of["family"].get(family) or _of_images(of["image_id"], images)
        if found is not None:
            covered[caption] = found
    return covered


def _of_images(waiver_of: dict[str, Waiver], images: Sequence[str] | None) -> Waiver | None:
    """Return the waiver of a caption that copies these images. A copy without a waiver leaves the caption uncovered."""
    found: list[Any] = [waiver_of.get(image) for image in sorted(images or [])]
    return found[0] if found and all(found) else None
