"""Decode image bytes to the picture that is embedded and compared: what a training script makes of the same bytes."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

# Kept beside the weights of all vectors: other pictures of the same bytes give others. Raise it with any change here.
VERSION = 2
# Raster formats alone: Pillow hands EPS to Ghostscript, and some others to code that nobody audits images with.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# The largest file of one image, an uncompressed one at Pillow's limit of pixels included.
MOST_BYTES = 1 << 29
# How a picture lies: turned as its EXIF data says, or as its pixels are stored.
UPRIGHT, STORED = "upright", "stored"
_ORIENTATION = 0x0112


def decode(content: bytes | None, crop: str = "none", orientation: str = UPRIGHT) -> Image.Image:
    """Decode an image file as a training script does: its first frame as RGB, by Pillow's `convert("RGB")`.

    Args:
        content: The bytes of the file; None if the source has none.
        crop: "none", or "centre" for the largest square in the middle.
        orientation: UPRIGHT applies the orientation that the file's EXIF data gives, STORED keeps the pixels as stored.

    Raises what Pillow raises for what is no image or ends early, and DecompressionBombError beyond Pillow's limit of
    pixels (where Pillow only warns too), before memory is taken for them.
    """
    image = _opened(content)
    if orientation == UPRIGHT:
        ImageOps.exif_transpose(image, in_place=True)
    return _cropped(image, crop)


def decode_each(content: bytes | None, crop: str = "none", exif: str = "apply") -> dict[str, Image.Image]:
    """Decode an image file in each orientation in which training may have seen it.

    Args:
        content, crop: As for `decode`.
        exif: "apply" gives the upright picture, "ignore" the stored one, "both" the upright one and, if the EXIF
            orientation is not the identity, the stored one too.

    Returns the pictures by orientation (UPRIGHT, STORED). Raises as `decode` does.
    """
    if exif == "ignore":
        return {STORED: decode(content, crop, STORED)}
    image = _opened(content)
    upright = ImageOps.exif_transpose(image)
    found = {UPRIGHT: _cropped(upright, crop)}
    if exif == "both" and image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        found[STORED] = _cropped(image, crop)
    return found


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, as diffusers' training scripts do.

    Alpha is dropped, not blended; values beyond 8 bits are clipped to 255.
    """
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        return image.convert("RGB")


def _opened(content: bytes | None) -> Image.Image:
    if content is None:
        raise OSError(f"the source has no bytes for it, or more than {MOST_BYTES >> 20} MiB")
    Image.init()
    image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than {most:,}")
    image.load()
    return image


def _cropped(image: Image.Image, crop: str) -> Image.Image:
    picture = rgb(image)
    return centre(picture) if crop == "centre" else picture


def centre(image: Image.Image) -> Image.Image:
    """The largest square in the middle, where torchvision's CenterCrop has it."""
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))
