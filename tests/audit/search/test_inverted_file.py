"""The inverted file finds what the exact scan finds, on images that have neighbours, and says how much of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest

from audit.search.exact import nearest
from audit.search.inverted_file import LARGE, build, candidates, opened, ranked, recipe


def clumps(rng: np.random.Generator, centres: int, of_each: int, width: int) -> np.ndarray:
    rows = np.repeat(rng.normal(size=(centres, width)), of_each, axis=0)
    rows += 0.1 * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clumps(np.random.default_rng(0), 1000, 6, 16)


def test_the_recipe_goes_by_size_and_is_one_that_faiss_knows() -> None:
    assert recipe(1, 512) == "IVF1,SQ8"
    assert recipe(1_000_000, 512) == "IVF4000,SQ8"
    assert recipe(LARGE + 1, 512) == "OPQ64,IVF12649,PQ64"
    assert recipe(LARGE + 1, 30) == "IVF12649,SQ8"
    assert recipe(10**9, 512) == "OPQ64,IVF65536,PQ64"
    faiss.index_factory(512, recipe(LARGE + 1, 512), faiss.METRIC_INNER_PRODUCT)


def test_candidates_ranked_by_their_vectors_are_those_of_the_exact_scan(vectors: np.ndarray, tmp_path: Path) -> None:
    shards = np.array_split(vectors, 7)
    assert build(lambda: iter(shards), len(vectors), 16, tmp_path / "index") == "IVF150,SQ8"
    index = opened(str(tmp_path / "index"))
    names = [pa.array([f"{row:04d}" for row in part]) for part in np.array_split(np.arange(len(vectors)), 7)]
    queries = vectors[::23].astype(np.float32)
    exact_ids, exact = nearest(queries, zip(names, shards, strict=True), 3)
    read: list[int] = []

    def reader(n: int) -> Callable[[], tuple[pa.Array, np.ndarray]]:
        return lambda: (read.append(n), (names[n], shards[n]))[1]

    found = candidates(index, queries)
    assert (np.sort(found, axis=1)[:, 1:] != np.sort(found, axis=1)[:, :-1]).all()
    ids, similarity = ranked(queries, found, [(len(part), reader(n)) for n, part in enumerate(shards)], 3)
    assert (ids[:, 0] == exact_ids[:, 0]).mean() > 0.97
    same = ids == exact_ids
    assert similarity[same] == pytest.approx(exact[same], abs=1e-6)
    read.clear()
    ranked(queries[:1], found[:1, :1], [(len(part), reader(n)) for n, part in enumerate(shards)], 1)
    assert len(read) == 1


def test_a_query_whose_lists_hold_too_few_looks_into_all(tmp_path: Path) -> None:
    vectors = np.concatenate([np.tile([[1.0, 0.0]], (2000, 1)), np.tile([[0.0, 1.0]], (30, 1))])
    build(lambda: iter([vectors]), len(vectors), 2, tmp_path / "index")
    found = candidates(opened(str(tmp_path / "index")), np.array([[0.0, 1.0]], np.float32))
    assert found.shape == (1, 64)
    assert (found >= 0).all()
    few = tmp_path / "few"
    build(lambda: iter([vectors[:3]]), 3, 2, few)
    assert sorted(candidates(opened(str(few)), vectors[:1])[0]) == [0, 1, 2]
