"""Control captions that really reproduce a training image set no threshold; those that are high by chance do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from audit import schema
from audit.verdicts.control_captions import Control, Tail, alike, examine, separate
from audit.verdicts.thresholds import choose_threshold, control_maxima

FLOOR = 0.5
MERMAID, MERMAN = "a cheerful flat picture of a mermaid", "a cheerful flat picture of a merman"


def matches_of(similarity: float, following: float = 0.45, pixel_agreement: float = 0.3) -> pa.Table:
    """100 control captions of two seeds; the first one has one generation of a similarity, the others 0.3 to 0.543."""
    rows: list[dict[str, Any]] = []
    usual = np.linspace(0.3, 0.543, 99)
    for n in range(100):
        known = {"caption_id": f"{n:03d}", "purpose": "control", "embedder": "sscd", "pixel_agreement": 0.1}
        high = similarity if n == 0 else usual[n - 1]
        agreement = pixel_agreement if n == 0 else 0.1
        rows += [
            known | {"seed": 1, "rank": 1, "image_id": "i", "similarity": high, "pixel_agreement": agreement},
            known | {"seed": 1, "rank": 2, "image_id": "j", "similarity": min(following, high)},
            known | {"seed": 2, "rank": 1, "image_id": "k", "similarity": 0.25},
        ]
    return pa.Table.from_pylist(rows, schema.MATCHES)


def examined(
    matches: pa.Table,
    caption: str = "a glass of water",
    trained: str = MERMAN,
    reproduced: frozenset[str] = frozenset(),
) -> list[Control]:
    found = alike(matches, "sscd", "similarity", FLOOR)
    texts = {id_: caption if id_ == "000" else f"thing {id_}" for id_ in found}
    of_image = pa.table({"image_id": ["i"], "caption": [trained]})
    return examine(found, "similarity", FLOOR, texts, of_image, reproduced)


def separated(matches: pa.Table, **known: Any) -> tuple[list[Control], list[Control], Tail | None]:
    return separate(control_maxima(matches, "sscd", "verbatim"), examined(matches, **known))


@pytest.mark.parametrize(
    ("known", "match", "reason"),
    [
        ({"caption": MERMAID}, {"following": 0.95}, "a variant of a caption of that image"),
        ({"reproduced": frozenset("i")}, {"following": 0.95}, "from one of its own captions"),
        ({}, {"following": 0.95, "pixel_agreement": 0.97}, "pixel by pixel in 97 %"),
        ({}, {}, "far less similar to the next training image"),
    ],
)
def test_a_control_that_reproduces_an_image_sets_no_threshold(
    known: dict[str, Any], match: dict[str, Any], reason: str
) -> None:
    matches = matches_of(0.973, **match)
    [control], kept, _ = separated(matches, **known)
    assert (control.caption_id, control.similarity, control.image_id) == ("000", 0.973, "i")
    assert (control.seeds_alike, control.seeds) == (1, 2)
    assert any(reason in each for each in control.reasons)
    assert not kept
    others = [row["similarity"] for row in control_maxima(matches, "sscd", "verbatim").to_pylist()][1:]
    limit = choose_threshold("verbatim", np.array(others), 0.01, FLOOR)
    assert limit.value == 0.543  # with it, 0.973: every copy of 0.9 would be cleared


def test_similarity_alone_excludes_no_control() -> None:
    excluded, [kept], tail = separated(matches_of(0.973, following=0.96))
    assert excluded == []
    assert kept.caption_id == "000"
    assert kept.reasons == ()
    assert kept.p is not None
    assert kept.p < 0.05
    assert tail is not None


def test_a_reason_alone_excludes_no_control() -> None:
    """It is as alike as the others let expect: without it the threshold would be too low."""
    excluded, kept, _ = separated(matches_of(0.56), caption=MERMAID, reproduced=frozenset("i"))
    assert excluded == []
    assert kept == []


def test_several_that_reproduce_do_not_hide_each_other() -> None:
    matches = matches_of(0.973)
    high = [f"{n:03d}" for n in range(90, 100)]
    rows = matches.to_pylist()
    for row in rows:
        if row["caption_id"] in high and row["image_id"] == "i":
            row["similarity"] = 0.93
    excluded, _, _ = separated(pa.Table.from_pylist(rows, schema.MATCHES))
    assert {control.caption_id for control in excluded} == {"000", *high}


def test_what_does_not_look_like_a_copy_is_not_examined() -> None:
    assert {control.caption_id for control in examined(matches_of(0.49))}.isdisjoint({"000"})
    assert separated(matches_of(0.973).slice(0, 9))[2] is None  # three controls have no tail


def test_the_tail_is_a_normal_distribution_of_fishers_z() -> None:
    z = np.random.default_rng(0).normal(0.5, 0.1, 20_000)
    tail = Tail.fit(np.tanh(z))
    assert tail is not None
    assert (tail.mean, tail.deviation) == pytest.approx((0.5, 0.1), abs=2e-3)
    assert tail.quantile(0.01) == pytest.approx(np.quantile(np.tanh(z), 0.99), abs=5e-3)
    assert tail.survival(tail.quantile(0.01)) == pytest.approx(0.01)
