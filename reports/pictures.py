"""Encode pictures for pages: small, as data URIs, and blurred where they must not be shown."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageFilter
from pydantic import BaseModel, ConfigDict

MAX_SIDE = 256  # pixels
TINY = 128  # pixels; such pictures are stored without loss and shown without smoothing
BLUR = 1 / 12  # radius of the blur, as a share of the longer side


class Picture(BaseModel):
    """A picture as a data URI.

    Attributes:
        uri: The PNG or JPEG, at most MAX_SIDE pixels per side.
        tiny: Whether the picture was at most TINY pixels per side.
        size: Its size before it was made smaller, such as `512 × 512`.
        blurred: Whether it is blurred, so that its content cannot be recognized.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    tiny: bool
    size: str
    blurred: bool = False


def picture(encoded: bytes | None, blurred: bool = False) -> Picture | None:
    """Decode an image and encode it again with at most MAX_SIDE pixels per side.

    Args:
        encoded: The image in any format that Pillow reads.
        blurred: Whether to blur it. The pixels themselves are blurred: the page does not hold the sharp picture.

    Returns:
        The picture, or None if there is no image or it cannot be read.
    """
    if encoded is None:
        return None
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a large JPEG is decoded at a smaller size
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    rgba.thumbnail((MAX_SIDE, MAX_SIDE))
    shown = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if blurred:
        shown = shown.filter(ImageFilter.GaussianBlur(max(shown.size) * BLUR))
    tiny = max(width, height) <= TINY
    buffer = io.BytesIO()
    shown.save(buffer, "PNG" if tiny else "JPEG")
    uri = f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri=uri, tiny=tiny, size=f"{width} × {height}", blurred=blurred)
