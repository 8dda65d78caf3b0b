"""Clusters of near-duplicate images: what connects them, however the images are cut, and how near is near."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.duplicates.images import clusters, duplicate_threshold, edited, forest, near_pairs, same_bytes
from tests.support.clusters import first_connected, unit_rows


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    threshold=st.sampled_from([0.5, 0.9, 0.99]),
    same=st.lists(st.integers(0, 20), min_size=45, max_size=45),
)
def test_clusters_are_the_connected_components_of_all_pairs_however_images_are_cut(
    seed: int, sizes: list[int], blocks: list[int], threshold: float, same: list[int]
) -> None:
    total = sum(sizes)
    vectors = unit_rows(seed, total)
    shards = np.split(vectors, np.cumsum(sizes)[:-1])
    edges = [*np.cumsum([0, *blocks]).clip(max=total), total]
    pairs = [
        near_pairs(vectors[start:stop], start, iter(shards), threshold)
        for start, stop in zip(edges, edges[1:], strict=False)
        if stop > start
    ]
    files = same[:total]
    images = np.random.default_rng(seed).permutation(total)  # hashes come in no order
    of_bytes = same_bytes(pa.chunked_array([[str(files[image]) for image in images]]), images)
    found, first, size = clusters(np.concatenate([*pairs, of_bytes]))

    alike = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    edge = (alike >= threshold) | (np.array(files)[:, None] == np.array(files))
    if (np.abs(alike - threshold) > 1e-6).all():
        connected = first_connected(edge)
        sizes = np.bincount(connected, minlength=total)[connected]
        assert found.tolist() == np.flatnonzero(sizes > 1).tolist()
        assert first.tolist() == connected[found].tolist()
        assert size.tolist() == sizes[found].tolist()


def test_many_duplicates_leave_few_pairs() -> None:
    vectors = np.ones((500, 4), np.float16) / 2
    pairs = near_pairs(vectors, 0, iter([vectors]), 0.9)
    assert len(pairs) == 499
    assert set(clusters(pairs)[2]) == {500}


def test_a_forest_connects_what_its_pairs_connect() -> None:
    assert forest(np.array([[4, 2], [7, 4], [9, 8]])).tolist() == [[2, 4], [2, 7], [8, 9]]
    assert forest(np.empty((0, 2), np.int64)).shape == (0, 2)


def test_an_image_of_no_other_is_in_no_pair() -> None:
    assert [list(found) for found in clusters(np.empty((0, 2), np.int64))] == [[], [], []]
    assert same_bytes(pa.chunked_array([["a", "b"]]), np.arange(2)).shape == (0, 2)


def test_copies_of_bytes_are_paired_with_the_first_of_them() -> None:
    pairs = same_bytes(pa.chunked_array([["b", "a"], ["b", "b", "c"]]), np.array([7, 1, 3, 9, 4]))
    assert sorted(pairs.tolist()) == [[3, 7], [3, 9]]


def test_near_is_what_three_of_four_edited_copies_reach_but_never_less_than_a_copy() -> None:
    assert duplicate_threshold(np.array([0.8, 0.9, 0.96, 0.98, 1.0])) == pytest.approx(0.9)
    assert duplicate_threshold(np.array([0.1, 0.2])) == 0.75


def test_an_edited_copy_is_another_image_of_the_same_size_and_looks_like_it() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)
    copy = edited(image, np.random.default_rng(1))
    assert copy.size == image.size
    difference = np.asarray(copy, float) - np.asarray(image, float)
    assert 0 < np.abs(difference).mean() < 40
    assert edited(image, np.random.default_rng(1)).tobytes() == copy.tobytes()
