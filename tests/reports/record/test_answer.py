import pytest

from audit.record.manifest_entries import ClaimEntry, ClaimsEntry
from reports.record.answer import answer, limits
from reports.record.funnel import FunnelStep, Step


def claim(end: str, value: float, level: float) -> ClaimEntry:
    return ClaimEntry.model_validate(
        {
            "estimand": "copies",
            "end": end,
            "value": value,
            "of": 1000,
            "level": level,
            "sentence": "",
            "would_change": "",
        }
    )


NOTHING = claim("at_least", 0, 0.98)
LOW, HIGH = claim("at_least", 22, 0.98), claim("at_most", 193, 0.975)


@pytest.mark.parametrize(
    ("confirmed", "claims", "sentence"),
    [
        (
            30,
            [LOW, HIGH],
            "For 30 of 1,000 captions (3 %), the model reproduced a training image or a part of one; of all captions, "
            "at least 2.2 % and at most 19.3 % make it do so (95.5 % confidence).",
        ),
        (
            0,
            [NOTHING, HIGH],
            "For none of the 100 captions that were tried, of 1,000 in the dataset, did the model reproduce a training "
            "image; of all captions, at most 19.3 % make it do so (97.5 % confidence).",
        ),
        (30, [], "For 30 of 1,000 captions (3 %), the model reproduced a training image or a part of one."),
    ],
)
def test_the_answer_is_one_sentence_with_what_is_claimed(
    confirmed: int, claims: list[ClaimEntry], sentence: str
) -> None:
    counts: dict[Step, int] = {"captions": 1000, "screened": 1000, "generated": 100, "confirmed": confirmed}
    steps = [FunnelStep(step=step, captions=count, seconds=1.0) for step, count in counts.items()]
    assert answer(ClaimsEntry(claims=claims), steps).sentence == sentence


def test_uncalibrated_evidence_is_a_limit() -> None:
    assert limits(["profile", "bright_ending"])[:-1] == limits([])
    assert "uncalibrated evidence for this model: profile, bright_ending." in limits(["profile", "bright_ending"])[-1]
