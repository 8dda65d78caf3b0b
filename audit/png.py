"""Pixels as PNG."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# Shapes: h and w of the image.


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The file of an image: [h, w, 3], or [h, w] in grey."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
