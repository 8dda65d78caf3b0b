from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.embedding import Embedder
from audit.embedding.descriptor import to_tensor
from audit.matching import WINDOWS, nearest, region_similarity, vectors_of, window_vectors


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
    shards = [(names[a:b], vectors[a:b]) for a, b in zip(ends, ends[1:], strict=False)]

    ids, similarity = nearest(query, shards, k)

    everything = query @ vectors.astype(np.float32).T
    order = np.argsort(-everything, axis=1, kind="stable")[:, :k]
    assert ids.shape == similarity.shape == (queries, min(k, sum(sizes)))
    assert similarity == pytest.approx(np.take_along_axis(everything, order, axis=1), abs=1e-6)
    for q in range(queries):
        by_name = dict(zip(names, everything[q], strict=True))
        assert len(set(ids[q])) == len(ids[q])
        assert [by_name[name] for name in ids[q]] == pytest.approx(similarity[q], abs=1e-6)


def test_equally_near_images_come_in_the_order_of_their_ids_however_they_are_sharded() -> None:
    one = np.array([[1.0, 0.0]], dtype=np.float32)
    for shards in ([(["b", "a"], one.repeat(2, 0))], [(["b"], one), (["a"], one)]):
        assert nearest(one, shards, 5)[0].tolist() == [["a", "b"]]


def test_vectors_come_out_of_an_arrow_column_as_they_went_in() -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    assert vectors_of(array).tolist() == vectors.tolist()
    chunked = pa.chunked_array([array[:1], array[1:]])
    assert vectors_of(chunked).tolist() == vectors.tolist()
    assert vectors_of(array[1:3]).tolist() == vectors[1:3].tolist()


@pytest.fixture
def pixels() -> Embedder:
    """An embedder whose vector is the image itself, 8 x 8, without its mean."""
    encode: Callable = lambda x_BCHW: (x_BCHW - x_BCHW.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)  # noqa: E731
    return Embedder("pixels", 192, {}, lambda image: to_tensor(image, 8), encode)


def mosaic(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST)


def similarity(embedder: Embedder, generation: Image.Image, *candidates: Image.Image) -> list[float]:
    [query] = window_vectors(embedder, [generation])
    return region_similarity(query, window_vectors(embedder, list(candidates))).tolist()


@pytest.mark.parametrize("window", range(len(WINDOWS)))
def test_a_copied_region_is_found_although_the_rest_differs(pixels: Embedder, window: int) -> None:
    original, generation = mosaic(1), mosaic(2)
    x0, y0, x1, y1 = (round(64 * edge) for edge in WINDOWS[window])
    box = x0, y0, x1, y1
    generation.paste(original.crop(box), box)
    copied, other = similarity(pixels, generation, original, mosaic(3))
    assert copied == pytest.approx(1, abs=1e-5)
    assert other < 0.5


def test_a_blank_region_in_common_proves_nothing(pixels: Embedder) -> None:
    left, right = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    left.paste(mosaic(1).crop((0, 0, 32, 64)), (0, 0))
    right.paste(mosaic(2).crop((32, 0, 64, 64)), (32, 0))
    assert similarity(pixels, left, right)[0] < 0.9
    assert np.isnan(similarity(pixels, left, Image.new("RGB", (64, 64), "white"))).all()


def test_without_candidates_there_is_nothing_to_compare(pixels: Embedder) -> None:
    assert similarity(pixels, mosaic(1)) == []
