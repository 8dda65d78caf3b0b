from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from audit.embedding.descriptor import to_tensor
from audit.embedding.embedder import Embedder
from audit.images.png import map_png
from audit.verdicts.regions import (
    AGREES,
    TILES,
    agreement,
    bright,
    common,
    region_agreement,
    region_of,
    region_png,
    showing,
    similarities,
    thumbnail,
    tile_means,
)

EVERYWHERE = np.ones((TILES, TILES), bool)
TOP = np.zeros((TILES, TILES), bool)
TOP[:5] = True


@pytest.fixture
def pixels() -> Embedder:
    """An embedder whose vector is the image itself, 8 x 8, without its mean."""
    encode: Callable = lambda x_BCHW: (x_BCHW - x_BCHW.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)  # noqa: E731
    return Embedder("pixels", 192, {}, lambda image: to_tensor(image, 8), encode)


def mosaic(seed: int, side: int = 64) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST)


def template(below: int, above: int = 1) -> Image.Image:
    """Pictures whose upper five eighths are the same."""
    image = mosaic(below)
    image.paste(mosaic(above).crop((0, 0, 64, 40)), (0, 0))
    return image


def test_two_pictures_agree_where_their_difference_is_small_in_each_tile() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((64, 64, 3)), rng.random((64, 64, 3))
    noise = rng.uniform(0, 0.6, (8, 8)).repeat(8, 0).repeat(8, 1)[..., None]
    mixed = one + noise * (other - one)
    expected = np.empty((8, 8), bool)
    for i in range(8):
        for j in range(8):
            tile = np.s_[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            expected[i, j] = np.sqrt(np.mean((one[tile] - mixed[tile]) ** 2)) < AGREES
    assert expected.any()
    assert not expected.all()
    assert (agreement(one.astype(np.float32), mixed.astype(np.float32)) == expected).all()


def test_templates_agree_in_what_they_share_whatever_their_size() -> None:
    large = template(2).resize((400, 300), Image.Resampling.NEAREST)
    assert (agreement(thumbnail(large), thumbnail(template(3)))[:5]).all()
    assert not agreement(thumbnail(large), thumbnail(template(3)))[5:].all()


def test_agreement_within_a_region_counts_the_tiles_that_show_something() -> None:
    def on_white(seed: int) -> np.ndarray:
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste(mosaic(seed, 32), (16, 8))
        return thumbnail(picture)

    first, second = on_white(5), on_white(6)
    assert agreement(first, second)[TOP].mean() > 0.5  # the white background, most of the region
    assert region_agreement(first, second, TOP) < 0.3
    assert region_agreement(first, first, TOP) == 1
    edge = TOP.copy()
    edge[2] = False
    assert np.isnan(region_agreement(first, first, edge))  # what it shows is less than a quarter of the picture
    white = thumbnail(Image.new("RGB", (64, 64), "white"))
    assert region_agreement(first, white, TOP) == 0  # an empty picture agrees with no blob
    assert np.isnan(region_agreement(white, white, TOP))


def test_what_the_generations_of_a_caption_have_in_common_is_where_half_of_the_others_agree() -> None:
    generations = np.stack([thumbnail(template(seed)) for seed in (2, 3, 4)] + [thumbnail(mosaic(9))])
    found = common(generations)
    assert found[:3, :5].all()
    assert not found[:3, 5:].all()
    assert found[3].mean() < 0.3  # the one that is none of the template
    assert common(generations[:1]).all()


def test_a_region_comes_out_of_its_file_as_it_went_in_and_a_bright_ending_by_half_of_its_height() -> None:
    assert (region_of(region_png(TOP)) == TOP).all()
    attention = np.where(TOP.repeat(2, 0).repeat(2, 1), 0.9, 0.4)
    assert (bright(map_png(attention.reshape(-1), 16, 16)) == TOP).all()


def test_a_copied_region_is_found_although_the_rest_differs(pixels: Embedder) -> None:
    copied, other = similarities(pixels, template(2), TOP, [template(3), mosaic(4)])
    assert copied == pytest.approx(1, abs=1e-5)
    assert other < 0.9
    [everywhere] = similarities(pixels, template(2), EVERYWHERE, [template(3)])
    assert everywhere < 0.9


def test_a_small_or_a_blank_region_proves_nothing(pixels: Embedder) -> None:
    corner = np.zeros((TILES, TILES), bool)
    corner[:3, :3] = True
    assert np.isnan(similarities(pixels, template(2), corner, [template(2)])).all()
    white = Image.new("RGB", (64, 64), "white")
    found = similarities(pixels, template(2), TOP, [white, template(3)])
    assert np.isnan(found).tolist() == [True, False]
    assert np.isnan(similarities(pixels, white, TOP, [white])).all()
    assert similarities(pixels, template(2), TOP, []).tolist() == []


def test_a_picture_shows_a_region_of_another_by_its_tiles_that_are_not_blank() -> None:
    flat = template(2)
    flat.paste((255, 255, 255), (0, 0, 64, 20))
    own = thumbnail(flat)
    others = np.stack([thumbnail(image) for image in (flat, mosaic(5), Image.new("RGB", (64, 64), "white"))])
    assert showing(others, tile_means(others), own, TOP).tolist() == [True, False, False]
    blank = np.zeros((TILES, TILES), bool)
    blank[:2] = True
    assert not showing(others, tile_means(others), own, blank).any()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_short_cut_by_means_loses_no_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.random((64, 64, 3), np.float32)
    brighter_N, noise_NPP3 = np.linspace(0, 1.2, 9), rng.uniform(-1, 1, (9, 64, 64, 3))
    others = own + AGREES * (brighter_N[:, None, None, None] + noise_NPP3).astype(np.float32)
    expected = [bool(agreement(other, own).mean() >= 0.9) for other in others]
    assert len(set(expected)) == 2
    assert showing(others, tile_means(others), own, EVERYWHERE).tolist() == expected
