"""Encode pixels as PNG."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

# Shapes: h and w of the image, Q queries of an attention layer.


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image [h, w, 3] (RGB) or [h, w] (grey) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def map_png(values_Q: npt.NDArray[np.floating], height: int, width: int) -> bytes:
    """Encode a map [Q] of values from 0 to 1 as a grey PNG.

    Args:
        values_Q: Values in row-major order.
        height: Height of the picture that the map belongs to; the map may be coarser or finer.
        width: Width of that picture.

    Returns:
        The bytes of the PNG.
    """
    rows = round(math.sqrt(len(values_Q) * height / width))
    return png((values_Q * 255).round().astype(np.uint8).reshape(rows, -1))
