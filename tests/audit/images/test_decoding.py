"""Whatever a dataset holds ends as upright RGB, or as an error before memory is taken."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.transforms import CenterCrop

from audit.images.decoding import MOST_BYTES, STORED, UPRIGHT, centre, decode, decode_each

SIZE = (12, 8)


def soft(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", size), (b"IDAT", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_image_comes_back_as_it_was(kind: str) -> None:
    assert (pixels(decode(file_of(soft(), kind))) == pixels(soft())).all()


def odd(kind: str) -> bytes:
    """An image file of a mode that training scripts convert without a word."""
    deep_HW = np.arange(0, 1 << 16, 683, dtype=np.uint16).reshape(8, 12)
    alpha = soft()
    alpha.putalpha(Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)))
    frames = [soft(seed) for seed in range(3)]
    files: dict[str, Callable[[], bytes]] = {
        "cmyk jpeg": lambda: file_of(soft().convert("CMYK"), "JPEG"),
        "cmyk tiff": lambda: file_of(soft().convert("CMYK"), "TIFF"),
        "16 bits, png": lambda: file_of(Image.fromarray(deep_HW), "PNG"),
        "16 bits, tiff": lambda: file_of(Image.fromarray(deep_HW), "TIFF"),
        "32 bits": lambda: file_of(Image.fromarray(deep_HW.astype(np.int32)), "TIFF"),
        "floats": lambda: file_of(Image.fromarray(np.linspace(-9, 300, 96, dtype=np.float32).reshape(8, 12)), "TIFF"),
        "palette": lambda: file_of(soft().quantize(7), "PNG"),
        "palette with transparency": lambda: file_of(soft().quantize(7), "PNG", transparency=0),
        "palette with alpha": lambda: file_of(soft().quantize(7), "PNG", transparency=bytes(range(7))),
        "a transparent colour": lambda: file_of(soft(), "PNG", transparency=soft().getpixel((0, 0))),
        "alpha": lambda: file_of(alpha, "PNG"),
        "grey with alpha": lambda: file_of(alpha.convert("LA"), "PNG"),
        "one bit": lambda: file_of(soft().convert("1"), "PNG"),
        "moving gif": lambda: file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving webp": lambda: file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    }
    return files[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        *("cmyk jpeg", "cmyk tiff", "16 bits, png", "16 bits, tiff", "32 bits", "floats", "one bit"),
        *("palette", "palette with transparency", "palette with alpha", "a transparent colour"),
        *("alpha", "grey with alpha", "moving gif", "moving webp"),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_an_image_of_any_mode_is_what_diffusers_training_scripts_make_of_it(kind: str) -> None:
    """`image.convert("RGB")` in examples/text_to_image/train_text_to_image.py."""
    content = odd(kind)
    with Image.open(io.BytesIO(content)) as image:
        expected = pixels(image.convert("RGB"))
    assert (pixels(decode(content)) == expected).all()


def test_cmyk_becomes_rgb() -> None:
    found = pixels(decode(file_of(soft().convert("CMYK"), "TIFF")))
    assert np.abs(found - pixels(soft())).max() <= 1
    lossy = pixels(decode(file_of(soft().convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(lossy - pixels(soft())).max() <= 12


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animated_image_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert (pixels(decode(content)) == (255, 0, 0)).all()


# EXIF 2.32, 4.6.4: what of the scene row 0 and column 0 of the file show.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def turned(scene: np.ndarray, orientation: int) -> tuple[bytes, np.ndarray]:
    """A file that shows the scene when its orientation is applied, and its pixels as stored."""
    row, column = ORIENTATIONS[orientation]
    stored = scene if row in ("top", "bottom") else scene.transpose(1, 0, 2)
    stored = stored[:: -1 if row in ("bottom", "right") else 1, :: -1 if column in ("bottom", "right") else 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(Image.fromarray(stored.astype(np.uint8)), "PNG", exif=exif), stored


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_turned_as_its_exif_says(orientation: int) -> None:
    scene = pixels(soft())
    assert (pixels(decode(turned(scene, orientation)[0])) == scene).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("exif", ["apply", "ignore", "both"])
def test_an_image_is_decoded_in_each_orientation_that_training_may_have_seen(exif: str, orientation: int) -> None:
    scene = pixels(soft())
    content, stored = turned(scene, orientation)
    ways = {"apply": [UPRIGHT], "ignore": [STORED], "both": [UPRIGHT, STORED] if orientation > 1 else [UPRIGHT]}
    found = decode_each(content, exif=exif)
    assert list(found) == ways[exif]
    for way, picture in found.items():
        assert (pixels(picture) == {UPRIGHT: scene, STORED: stored}[way]).all()
        assert (pixels(decode(content, orientation=way)) == pixels(picture)).all()


def test_one_pixel_is_a_picture() -> None:
    assert decode(file_of(Image.new("L", (1, 1), 7), "PNG"), "centre").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_truncated_image_is_an_error(kind: str) -> None:
    content = file_of(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"this is no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_raster_image_is_an_error_and_no_other_program_is_asked(content: bytes) -> None:
    with pytest.raises(Image.UnidentifiedImageError):
        decode(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_bomb_is_an_error_before_its_pixels_are_looked_at(side: int) -> None:
    """10,000 a side is where Pillow only warns. There are no pixels: to decode first would be another error."""
    with pytest.raises(Image.DecompressionBombError):
        decode(header(side, side))


def test_a_source_without_bytes_is_an_error() -> None:
    with pytest.raises(OSError, match=f"more than {MOST_BYTES >> 20} MiB"):
        decode(None)


@pytest.mark.parametrize("size", [(12, 8), (7, 12), (9, 9), (1, 5), (13, 8)])
def test_a_centre_crop_is_that_of_torchvision(size: tuple[int, int]) -> None:
    image = soft(1, size)
    wanted = CenterCrop(min(size))(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert (pixels(centre(image)) == wanted.permute(1, 2, 0).numpy()).all()
    assert (pixels(decode(file_of(image, "PNG"), "centre")) == pixels(centre(image))).all()
    assert decode(file_of(image, "PNG")).size == size


def test_an_icc_profile_does_no_harm() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (pixels(decode(file_of(soft(), "PNG", icc_profile=profile))) == pixels(soft())).all()
