"""Answer in one sentence what was found, with percentages that can be quoted."""

from __future__ import annotations

from collections.abc import Sequence

from audit.record.manifest_entries import ClaimEntry, ClaimsEntry
from audit.statistics.claims import percent
from reports.record.funnel import FunnelStep
from reports.record.part import Part

LIMITS = [
    "Finding nothing does not prove that nothing was memorized. Beyond the bounds that are stated, the report claims "
    "nothing about captions for which no images were generated, or about other seeds, steps, guidance scales or "
    "samplers.",
    "Only captions of the dataset were tried. Other prompts, including close variants of a caption, can also reproduce "
    "a training image.",
    "Generated images were compared with the training images that were given. An image that is missing there cannot be "
    "found: “unconfirmed” means only that none of the given images matched.",
    "“Copy” means that the similarity measured by one embedder reaches a threshold. The embedder can miss copies that "
    "were recoloured, cropped or redrawn, and it can mistake two pictures of the same simple object for copies. "
    "Whether a likeness infringes a right is for people to decide. The cases are shown so that they can.",
    "“Not selected” means “not looked at”: these captions were screened, but no images were generated for them. They "
    "are not cleared.",
    "Each bound counts what it names: captions, rows, families or generations. Near-identical captions count one by "
    "one.",
]
UNCALIBRATED = (
    "These detectors are uncalibrated evidence for this model: {}. They read attention, and how many memorized "
    "captions they find was not measured on planted models of this family. Bounds and p-values hold all the same."
)


class Answer(Part):
    """What was found, in one sentence, and the numbers in it.

    Attributes:
        sentence: The answer.
        captions: Number of captions audited.
        generated: Number of captions for which images were generated and compared.
        confirmed: Number of captions that made the model copy a training image, or a part of one.
        low: At least this share of all captions do; None without such a claim.
        high: At most this share of all captions do; None without such a claim.
        confidence: The probability with which `low` and `high` hold together; None without both.
    """

    sentence: str
    captions: int
    generated: int
    confirmed: int
    low: float | None
    high: float | None
    confidence: float | None


def answer(claims: ClaimsEntry, steps: Sequence[FunnelStep]) -> Answer:
    """State what was found.

    Args:
        claims: The claims of the run.
        steps: The funnel of the run.

    Returns:
        The answer in one sentence, with its numbers.
    """
    count = {row.step: row.captions for row in steps}
    total, generated, confirmed = count["captions"], count["generated"], count["confirmed"]
    low, high = (_claim(claims, end) for end in ("at_least", "at_most"))
    bounds = [claim for claim in (low, high) if claim and (claim.value or claim is high)]
    confidence = 1 - sum(1 - claim.level for claim in bounds) if bounds else None
    if confirmed:
        found = f"For {confirmed:,} of {total:,} captions ({100 * confirmed / total:.3g} %), the model reproduced a "
        found += "training image or a part of one"
    else:
        found = f"For none of the {generated:,} captions that were tried, of {total:,} in the dataset, did the model "
        found += "reproduce a training image"
    bounded = _bounds(low, high)
    if bounded and confidence is not None:
        found += f"; of all captions, {bounded} make it do so ({100 * confidence:g} % confidence)"
    return Answer(
        sentence=found + ".",
        captions=total,
        generated=generated,
        confirmed=confirmed,
        low=_share(low),
        high=_share(high),
        confidence=confidence,
    )


def limits(uncalibrated: Sequence[str]) -> list[str]:
    """List what the report does not show.

    Args:
        uncalibrated: Detectors that are uncalibrated evidence.
    """
    return [*LIMITS, *([UNCALIBRATED.format(", ".join(uncalibrated))] if uncalibrated else [])]


def _claim(claims: ClaimsEntry, end: str) -> ClaimEntry | None:
    return next((claim for claim in claims.claims if (claim.estimand, claim.end) == ("copies", end)), None)


def _share(claim: ClaimEntry | None) -> float | None:
    return claim.value / max(claim.of, 1) if claim else None


def _bounds(low: ClaimEntry | None, high: ClaimEntry | None) -> str:
    least, most = _share(low), _share(high)
    parts = []
    if least:
        parts.append(f"at least {percent(least, down=True)}")
    if most is not None:
        parts.append(f"at most {percent(most)}")
    return " and ".join(parts)
