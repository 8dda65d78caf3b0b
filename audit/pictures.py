"""Image bytes to the picture that is embedded and compared: upright, RGB, cropped as training cropped it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

# Kept beside the weights of all vectors: other pictures of the same bytes give others. Raise it with any change here.
VERSION = 1
# Raster formats alone: Pillow hands EPS to Ghostscript, and some others to code that nobody audits images with.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# The largest file of one image, an uncompressed one at Pillow's limit of pixels included.
MOST_BYTES = 1 << 29


def decode(content: bytes | None, crop: str = "none") -> Image.Image:
    """The picture of an image file: the first frame, turned as its EXIF says, RGB, with `crop` "centre" a square.

    Raises what Pillow raises for what is no image or ends early, and DecompressionBombError beyond Pillow's limit of
    pixels (where Pillow only warns too), before memory is taken for them.
    """
    if content is None:
        raise OSError(f"the source has no bytes for it, or more than {MOST_BYTES >> 20} MiB")
    Image.init()
    image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than {most:,}")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    picture = flatten(image)
    return centre(picture) if crop == "centre" else picture


def flatten(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode; transparency is laid on white, of 16 bits the upper 8 count.

    Raises ValueError where the range of the pixels is unknown: floating-point ones, integers beyond 16 bits.
    """
    if image.mode.startswith(("I", "F")):
        return _of_deep(image)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def centre(image: Image.Image) -> Image.Image:
    """The largest square in the middle, where torchvision's CenterCrop has it."""
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _of_deep(image: Image.Image) -> Image.Image:
    values_HW = np.asarray(image)
    if image.mode == "F" or values_HW.min() < 0 or values_HW.max() > 0xFFFF:
        raise ValueError(f"pixels of mode {image.mode} whose range is unknown")
    return Image.fromarray((values_HW >> 8).astype(np.uint8)).convert("RGB")
