"""Lists: what shares one is compared exactly, and what is drawn does not depend on how images are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.duplicates import cells
from audit.duplicates.images import clusters
from tests.support.clusters import first_connected, unit_rows


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 60),
    count=st.integers(1, 9),
    each=st.integers(1, 9),
    threshold=st.sampled_from([0.5, 0.9]),
)
def test_images_of_a_cell_are_connected_as_an_exact_comparison_connects_them(
    seed: int, images: int, count: int, each: int, threshold: float
) -> None:
    vectors = unit_rows(seed, images)
    numbers = np.sort(np.random.default_rng(seed).choice(1000, images, replace=False))
    cell_NL = cells.assigned(vectors, cells.learned(vectors, count, seed), each)
    member, slot = np.unravel_index(np.random.default_rng(seed).permutation(cell_NL.size), cell_NL.shape)
    pairs = cells.near_in_cells(cell_NL[member, slot], numbers[member], vectors[member], threshold)

    alike = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    together = (cell_NL[:, None, :, None] == cell_NL[None, :, None, :]).any(axis=(2, 3))
    assert together.all() or each < min(count, images)
    if (np.abs(alike - threshold) > 1e-6).all():
        connected = first_connected((alike >= threshold) & together)
        found, first, _ = clusters(pairs)
        expected = numbers[connected]
        expected[np.searchsorted(numbers, found)] = first
        assert expected.tolist() == numbers[connected].tolist()
        assert len(found) == (np.bincount(connected, minlength=images)[connected] > 1).sum()


def test_a_cell_larger_than_a_block_is_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "BLOCK", 7)
    vectors = unit_rows(1, 40)
    pairs = cells.near_in_cells(np.zeros(40, np.int32), np.arange(40), vectors, 0.9)
    monkeypatch.undo()
    assert pairs.tolist() == cells.near_in_cells(np.zeros(40, np.int32), np.arange(40), vectors, 0.9).tolist()


def test_centres_are_of_length_one_and_the_same_again() -> None:
    vectors = unit_rows(0, 500, 8)
    centres = cells.learned(vectors, 20, 3)
    assert centres.shape == (20, 8)
    assert centres.dtype == np.float32
    assert np.linalg.norm(centres, axis=1) == pytest.approx(1, abs=1e-5)
    assert (cells.learned(vectors, 20, 3) == centres).all()
    assert (cells.learned(vectors, 20, 4) != centres).any()
    assert len(cells.learned(vectors[:3], 20, 3)) == 3


def test_an_image_is_in_the_cells_of_the_nearest_centres() -> None:
    vectors, centres = unit_rows(0, 50, 8), unit_rows(1, 12, 8).astype(np.float32)
    alike = vectors.astype(np.float64) @ centres.astype(np.float64).T
    assert cells.assigned(vectors, centres, 3).tolist() == np.argsort(-alike, axis=1)[:, :3].tolist()
    assert cells.assigned(vectors, centres[:2], 3).shape == (50, 2)


def test_a_sample_is_about_as_large_as_wanted_and_known_by_number_alone() -> None:
    numbers = np.arange(100_000)
    drawn = cells.drawn(numbers, len(numbers), 5000, 7)
    assert abs(drawn.sum() - 5000) < 4 * 5000**0.5
    order = np.random.default_rng(0).permutation(len(numbers))
    assert (cells.drawn(numbers[order], len(numbers), 5000, 7) == drawn[order]).all()
    other = cells.drawn(numbers, len(numbers), 5000, 8)
    assert abs((drawn & other).sum() - 250) < 4 * 250**0.5
    assert cells.drawn(numbers, len(numbers), 200_000, 7).all()
    assert cells.drawn(np.array([0]), 10**9, 1, -1).all()


def test_there_are_as_many_cells_as_cost_least() -> None:
    def cost(images: int, count: float) -> float:
        return images * count + (cells.EACH * images) ** 2 / (2 * count)

    for images in (20_000, 1_000_000, 50_000_000):
        count = cells.cells_for(images)
        assert cost(images, count) <= min(cost(images, 0.9 * count), cost(images, 1.1 * count))
    assert [cells.cells_for(images) for images in (0, 1, 40, 10**9)] == [1, 1, 1, cells.MOST_CELLS]
    # Of few images every one may be compared with every other as well.
    assert all(cells.cells_for(images) * cells.PER_CELL <= max(images, cells.PER_CELL) for images in range(5000))


def test_products_are_those_of_all_four_steps() -> None:
    count = cells.cells_for(1_000_000)
    compared = cells.UNEVEN * (cells.EACH * 1_000_000) ** 2 // (2 * count)
    learning = cells.ROUNDS * cells.PER_CELL * count * count
    assert cells.products(1_000_000) == learning + 1_000_000 * (count + cells.SCANNED) + compared
    assert cells.products(400_000_000) < 400_000_000**2 / 2 / 800
