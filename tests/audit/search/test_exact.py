import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.search.exact import nearest, vectors_of


def unit_rows(rng: np.random.Generator, n: int, width: int = 8) -> np.ndarray:
    rows = rng.normal(size=(n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(0, 5),
    sizes=st.lists(st.integers(0, 30), max_size=6),
    k=st.integers(1, 12),
    half=st.booleans(),
)
def test_nearest_equals_brute_force_over_any_shards(
    seed: int, queries: int, sizes: list[int], k: int, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    query = unit_rows(rng, queries)
    vectors = unit_rows(rng, sum(sizes)).astype(np.float16 if half else np.float32)
    names = np.array([f"{i:032x}" for i in rng.permutation(sum(sizes))], dtype=str)
    ends = np.cumsum([0, *sizes])
    shards = [(pa.array(names[a:b]), vectors[a:b]) for a, b in zip(ends, ends[1:], strict=False)]

    ids, similarity = nearest(query, shards, k)

    everything = query @ vectors.astype(np.float32).T
    order = np.argsort(-everything, axis=1, kind="stable")[:, :k]
    assert similarity.dtype == np.float32
    assert ids.shape == similarity.shape == (queries, min(k, sum(sizes)))
    assert similarity == pytest.approx(np.take_along_axis(everything, order, axis=1), abs=1e-6)
    for q in range(queries):
        by_name = dict(zip(names, everything[q], strict=True))
        assert len(set(ids[q])) == len(ids[q])
        assert [by_name[name] for name in ids[q]] == pytest.approx(similarity[q], abs=1e-6)


def test_equally_near_images_come_in_the_order_of_their_ids_however_they_are_sharded() -> None:
    one = np.array([[1.0, 0.0]], dtype=np.float32)
    both, a, b = (pa.array(ids) for ids in (["b", "a"], ["a"], ["b"]))
    for shards in ([(both, one.repeat(2, 0))], [(b, one), (a, one)]):
        assert nearest(one, shards, 5)[0].tolist() == [["a", "b"]]


def test_only_the_best_are_remembered_however_many_shards_go_by() -> None:
    rng = np.random.default_rng(0)
    query = unit_rows(rng, 3)
    better = np.linspace(0.1, 1, 50, dtype=np.float32)
    shards = [(pa.array([f"{i:02d}"]), query[:1] * scale) for i, scale in enumerate(better)]
    ids, similarity = nearest(query[:1], shards, 2)
    assert ids.tolist() == [["49", "48"]]
    assert similarity[0] == pytest.approx(better[[49, 48]])


def test_vectors_come_out_of_an_arrow_column_as_they_went_in() -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    assert vectors_of(array).tolist() == vectors.tolist()
    chunked = pa.chunked_array([array[:1], array[1:]])
    assert vectors_of(chunked).tolist() == vectors.tolist()
    assert vectors_of(array[1:3]).tolist() == vectors[1:3].tolist()
