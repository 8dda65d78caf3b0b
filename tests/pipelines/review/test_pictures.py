"""The two pictures of a pair differ in nothing but their content."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from audit.images.decoding import decode
from pipelines.review.pictures import MAX_SIDE, alike, altered
from tests.support.toy import png


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("one", "other", "side", "kind"),
    [
        ((64, 64), (480, 320), 64, "PNG"),
        ((512, 512), (2000, 1000), 512, "JPEG"),
        ((3000, 3000), (1000, 4000), MAX_SIDE, "JPEG"),
        ((5, 900), (900, 1), MAX_SIDE, "JPEG"),
    ],
)
def test_both_have_one_resolution_and_format(
    one: tuple[int, int], other: tuple[int, int], side: int, kind: str
) -> None:
    for sizes in ((one, other), (other, one)):
        shown = [opened(content) for content in alike(*(Image.new("RGB", size, "red") for size in sizes))]
        assert [max(picture.size) for picture in shown] == [side, side]
        assert [picture.format for picture in shown] == [kind, kind]
        for picture, (width, height) in zip(shown, sizes, strict=True):
            assert picture.size == (max(1, round(width * side / max(sizes[shown.index(picture)]))), picture.size[1])
            assert picture.size[1] == max(1, round(height * side / max(width, height)))


def test_metadata_of_the_file_is_not_passed_on() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a training image"
    Image.new("RGB", (200, 200)).save(buffer, "JPEG", exif=exif)
    shown, _ = alike(decode(buffer.getvalue()), Image.new("RGB", (200, 200)))
    assert b"training" not in shown


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 700), (33, 32)])
def test_a_picture_of_any_size_can_be_altered(size: tuple[int, int]) -> None:
    assert altered(Image.new("RGB", size, "red")).size == size


@pytest.mark.parametrize("size", [32, 64, 600])
def test_an_altered_picture_is_another_one_but_looks_the_same(size: int) -> None:
    picture = decode(png(3, size))
    changed = altered(picture)
    assert changed.size == picture.size
    before, after = (np.asarray(each.resize((8, 8)), float) for each in (picture, changed))
    other = np.asarray(decode(png(4, size)).resize((8, 8)), float)
    assert 0 < np.abs(before - after).mean() < 20 < np.abs(other - after).mean()
