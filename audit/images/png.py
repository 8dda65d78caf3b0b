"""Pixels as PNG."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

# Shapes: h and w of the image, Q = queries of an attention layer.


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The file of an image: [h, w, 3], or [h, w] in grey."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def map_png(values_Q: npt.NDArray[np.floating], height: int, width: int) -> bytes:
    """A map of values from 0 to 1, of the same shape as `height` x `width` but coarser or finer, in grey."""
    rows = round(math.sqrt(len(values_Q) * height / width))
    return png((values_Q * 255).round().astype(np.uint8).reshape(rows, -1))
