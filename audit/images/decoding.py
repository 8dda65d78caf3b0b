"""Decode image bytes to the picture that is embedded and compared: the one a training script makes of these bytes."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

# Stored with the weights' hashes, because other pictures give other vectors. Raise it with any change to this file.
VERSION = 2
# Raster formats only: Pillow hands EPS to Ghostscript, and its other formats are not used for training images.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Largest file of one image; it allows for an uncompressed image at Pillow's limit of pixels.
MOST_BYTES = 1 << 29
# Orientation of a picture: turned as its EXIF data says, or as its pixels are stored.
UPRIGHT, STORED = "upright", "stored"
_ORIENTATION = 0x0112


def decode(content: bytes | None, crop: str = "none", orientation: str = UPRIGHT) -> Image.Image:
    """Decode an image file as a training script does: its first frame as RGB, by Pillow's `convert("RGB")`.

    Args:
        content: The bytes of the file; None if the source has none.
        crop: "none", or "centre" for the largest square in the middle.
        orientation: UPRIGHT applies the orientation in the file's EXIF data; STORED keeps the pixels as stored.

    Returns:
        The decoded image, in RGB.

    Raises:
        OSError: The content is missing, is not an image or ends early. Pillow may raise other exceptions too.
        DecompressionBombError: The image exceeds Pillow's limit of pixels (also where Pillow would only warn). It is
            raised before memory is allocated for the pixels.
    """
    image = _opened(content)
    if orientation == UPRIGHT:
        ImageOps.exif_transpose(image, in_place=True)
    return _cropped(image, crop)


def decode_each(content: bytes | None, crop: str = "none", exif: str = "apply") -> dict[str, Image.Image]:
    """Decode an image file in each orientation in which training may have seen it.

    Args:
        content: As for `decode`.
        crop: As for `decode`.
        exif: "apply" gives the upright picture, "ignore" the stored one. "both" gives the upright one and, if the EXIF
            orientation is not the identity, the stored one too.

    Returns:
        The pictures by orientation (UPRIGHT, STORED). Raises as `decode` does.
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
    """Crop an image to the largest square in the middle, as torchvision's CenterCrop does."""
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))
