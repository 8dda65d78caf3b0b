from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import schema
from audit.statistics.intervals import upper_bound
from audit.verdicts.confirm_error import measured, setting_half
from audit.verdicts.thresholds import Threshold

THRESHOLDS = {"verbatim": Threshold(0.8, "controls"), "region": Threshold(0.6, "controls")}


def controls(groups: list[int]) -> pa.Table:
    return pa.table({"caption_id": [f"c{n}" for n in range(len(groups))], "caption_group": [f"g{g}" for g in groups]})


def match(caption: str, similarity: float, seed: int = 1, **other: Any) -> dict[str, Any]:
    known = {"caption_id": caption, "purpose": "control", "embedder": "sscd", "seed": seed, "similarity": similarity}
    return known | other


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema.MATCHES)


@given(st.lists(st.integers(0, 30), max_size=120), st.integers(0, 2**32))
def test_the_halves_share_no_caption_group_and_are_as_large_as_groups_allow(groups: list[int], seed: int) -> None:
    found = controls(groups)
    setting = setting_half(found, seed)
    of = dict(zip(found["caption_id"].to_pylist(), found["caption_group"].to_pylist(), strict=True))
    assert {of[id_] for id_ in setting}.isdisjoint(group for id_, group in of.items() if id_ not in setting)
    assert 0 <= 2 * len(setting) - len(groups) <= max(map(groups.count, groups), default=0)


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    found = controls(list(range(40)))
    assert setting_half(found, 1) == setting_half(found.take(list(reversed(range(40)))), 1)
    assert setting_half(found, 1) != setting_half(found, 2)


def test_the_error_is_that_of_all_rules_together() -> None:
    matches = table(
        match("whole", 0.9),
        match("region", 0.1, region_similarity=0.9, region_agreement=0.9),
        match("part", 0.9, pixel_agreement=0.5),
        match("blob", 0.1, region_similarity=0.9, region_agreement=0.5),
        match("nothing", 0.1),
        match("other embedder", 0.9, embedder="clip"),
        match("audited", 0.9, purpose="discover"),
    )
    found = measured(matches, "sscd", THRESHOLDS, seeds=1)
    assert (found.controls, found.confirmed, found.captions) == (5, 3, 1)
    assert found.high == upper_bound(3, 5)


def test_a_control_that_seems_to_reproduce_an_image_counts_as_confirmed() -> None:
    matches = table(match("mermaid", 0.99), match("nothing", 0.1))
    found = measured(matches, "sscd", THRESHOLDS, 1, frozenset({"mermaid", "another"}))
    assert (found.controls, found.confirmed, found.reproducing) == (2, 1, 1)


def test_a_control_with_a_failed_generation_counts_only_if_it_is_confirmed() -> None:
    matches = table(
        match("whole", 0.1), match("whole", 0.1, seed=2), match("failed", 0.1), match("failed but copied", 0.9)
    )
    found = measured(matches, "sscd", THRESHOLDS, seeds=2)
    assert (found.controls, found.confirmed) == (2, 1)


def test_without_controls_nothing_is_known_about_the_error() -> None:
    found = measured(table(), "sscd", THRESHOLDS, 1)
    assert (found.controls, found.confirmed, found.high) == (0, 0, None)


@pytest.mark.parametrize("k", [0, 3])
def test_the_bound_is_one_sided(k: int) -> None:
    matches = table(*(match(f"c{n}", 0.9 if n < k else 0.1) for n in range(100)))
    high = measured(matches, "sscd", THRESHOLDS, 1).high
    assert high == pytest.approx({0: 0.0295, 3: 0.0757}[k], abs=1e-4)
