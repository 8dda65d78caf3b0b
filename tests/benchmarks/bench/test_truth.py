"""A generation is a copy if its own image is at most half as far away as every other one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.planted.bench.truth import (
    FEW_SEEDS,
    PLANTED,
    SEEDS,
    Part,
    all_parts,
    apply_threshold,
    distances,
    few_parts,
    nearest,
)


def test_distances_are_those_of_a_loop_in_float64() -> None:
    rng = np.random.default_rng(0)
    images_ND = np.clip(0.9 + 0.1 * rng.standard_normal((5, 300)), 0, 1).astype(np.float32)
    made_GD = np.clip(images_ND[[3, 1]] + 0.02 * rng.standard_normal((2, 300)), 0, 1).astype(np.float32)
    expected = [
        [np.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(g, i, strict=True))) for i in images_ND]
        for g in made_GD
    ]
    np.testing.assert_allclose(distances(made_GD, images_ND), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([0], True),  # 1, and the nearest other is 2 away
        ([1], False),  # another image is nearer
        ([1, 0], True),  # one of several own images; the others are 3 and more away
        ([2], False),
    ],
)
def test_a_copy_is_nearest_by_a_factor_of_two(own: list[int], expected: bool) -> None:
    assert nearest(np.array([1.0, 2.0, 3.0]), own) is expected


def test_a_copy_must_be_half_as_far_as_the_next_image() -> None:
    assert not nearest(np.array([1.01, 2.0]), [0])


def test_sscd_must_exceed_what_captions_never_trained_on_reach() -> None:
    measured = [{"kind": "never", "sscd": 0.5, "sscd_top": 0.5}, {"kind": "dose", "sscd": 0.9, "sscd_top": 0.9}]
    rows = [
        {"sscd_whole": whole, "sscd": similarity, "sscd_region": None, "sscd_top": 1.0}
        for whole, similarity in ((True, 0.6), (True, 0.4), (False, 0.6))
    ]
    apply_threshold(rows, measured)
    assert [row["sscd_whole"] for row in rows] == [True, False, False]
    assert not any(row["sscd_region"] for row in rows)


@pytest.mark.parametrize(
    ("parts", "planted", "others"),
    [
        (all_parts, len(SEEDS), ("near", "odd", "ordinary", "never", "control")),
        (few_parts, len(FEW_SEEDS), ("ordinary", "never")),
    ],
    ids=["Stable Diffusion", "another family"],
)
def test_planted_captions_are_generated_from_all_seeds_and_others_from_one(
    parts: Callable[[pa.Table], list[Part]], planted: int, others: tuple[str, ...]
) -> None:
    kinds = [*PLANTED, "near", "odd", "ordinary", "never", "control"]
    seeds: dict[str, list[int]] = {}
    for chosen, part_seeds, _ in parts(pa.table({"caption": kinds, "kind": kinds})):
        for caption in chosen:
            seeds.setdefault(caption, []).extend(part_seeds)
    assert {caption: len(set(found)) for caption, found in seeds.items()} == (
        dict.fromkeys(PLANTED, planted) | dict.fromkeys(others, 1)
    )
    assert all(len(set(found)) == len(found) for found in seeds.values())
