"""Find where two pictures show the same content and how similar they are there (copies of a region, "templates").

A picture is compared as SIDE x SIDE pixels in TILES x TILES tiles. Two pictures agree in a tile if the root mean square
of their difference in that tile is below AGREES. Carlini et al. (USENIX Security 2023, arXiv 2301.13188, section 4.2)
use the same rule and constant to call an image extracted, but require it of every tile.

Shapes: S generations of one caption, N pictures, C candidates, P = SIDE, T = TILES, E embedding width. Pixels are RGB
in the range 0 to 1. A region is [T, T] bool.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from audit.images.decoding import rgb
from audit.images.png import png

if TYPE_CHECKING:
    from audit.embedding.embedder import Embedder

Pixels = npt.NDArray[np.float32]
Region = npt.NDArray[np.bool_]

SIDE, TILES = 64, 8
AGREES = 0.15
# A region covers at least the fraction LEAST of a picture. If two pictures agree in more than WHOLE, all of it is a
# copy.
LEAST, WHOLE = 0.25, 0.8
# One picture shows what another one does if they agree in the fraction SHOWN of its tiles that are not blank. The other
# picture must have at least SHOWN_TILES such tiles.
SHOWN, SHOWN_TILES = 0.9, 4
# Pixels whose standard deviation is below this in every channel are blank. Blank areas all look alike.
BLANK_DEVIATION = 0.06


def thumbnail(image: Image.Image) -> Pixels:
    """Return the pixels [P, P, 3] used for comparison; the picture is squeezed into a square."""
    small = rgb(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def agreement(one_PP3: Pixels, other_PP3: Pixels) -> Region:
    """Return the tiles in which two pictures agree: [T, T], or [..., T, T] for several pairs."""
    return tile_means((one_PP3 - other_PP3) ** 2).mean(-1) < AGREES**2


def region_agreement(one_PP3: Pixels, other_PP3: Pixels, region_TT: Region) -> float:
    """Compute the fraction of a region's tiles in which two pictures agree pixel by pixel.

    Tiles that are blank in both pictures and agree are left out, because plain backgrounds agree whatever stands before
    them.

    Returns:
        The fraction, or NaN if the tiles that are left cover less than the fraction LEAST of the picture.
    """
    agreed_TT = agreement(one_PP3, other_PP3)
    shown_TT = region_TT & (_not_blank(one_PP3) | _not_blank(other_PP3) | ~agreed_TT)
    if shown_TT.mean() < LEAST:
        return float("nan")
    return float(agreed_TT[shown_TT].mean())


def tile_means(pixels_PP3: Pixels) -> Pixels:
    """Compute the mean of each channel in each tile: [..., P, P, 3] to [..., T, T, 3]."""
    side = SIDE // TILES
    return pixels_PP3.reshape(*pixels_PP3.shape[:-3], TILES, side, TILES, side, 3).mean((-4, -2))


def common(pixels_SPP3: Pixels) -> npt.NDArray[np.bool_]:
    """Find, for each generation of a caption, the tiles in which at least half of the others agree with it: [S, T, T].

    What a model invents changes with the noise; what it remembers does not. A single generation gets all tiles.
    """
    count = len(pixels_SPP3)
    if count == 1:
        return np.ones((1, TILES, TILES), bool)
    found = []
    for own, pixels_PP3 in enumerate(pixels_SPP3):
        others_STT = agreement(np.delete(pixels_SPP3, own, axis=0), pixels_PP3)
        found.append(2 * others_STT.sum(0) >= count - 1)
    return np.stack(found)


def bright(attention: bytes) -> Region:
    """Return the tiles in which a `bright_ending` map (grey PNG) has at least half of its highest brightness."""
    grey = Image.open(io.BytesIO(attention)).convert("L").resize((TILES, TILES), Image.Resampling.BOX)
    return np.asarray(grey) >= 127.5


def region_png(region_TT: Region) -> bytes:
    """Encode a region as a black and white PNG of T x T pixels."""
    return png(region_TT.astype(np.uint8) * 255)


def region_of(content: bytes) -> Region:
    """Decode a region that `region_png` encoded."""
    return np.asarray(Image.open(io.BytesIO(content))) > 0


def similarities(
    embedder: Embedder, generation: Image.Image, region_TT: Region, candidates: Sequence[Image.Image]
) -> npt.NDArray[np.float64]:
    """Compute the similarity of a generation and each candidate within a region; the rest is blanked in both.

    Args:
        embedder: Computes the embeddings.
        generation: The generated picture.
        region_TT: The region to compare.
        candidates: Training images to compare with.

    Returns:
        Similarities [C]. NaN if there is nothing to compare: the region is smaller than LEAST, or blank in one of the
        two pictures.
    """
    found_C = np.full(len(candidates), np.nan)
    if region_TT.mean() < LEAST or blank(thumbnail(generation), region_TT):
        return found_C
    told = [c for c, image in enumerate(candidates) if not blank(thumbnail(image), region_TT)]
    if told:
        shown = [blanked(image, region_TT) for image in (generation, *(candidates[c] for c in told))]
        own_1E, others_CE = np.split(embedder.embed(shown), [1])
        found_C[told] = others_CE @ own_1E[0]
    return found_C


def showing(pixels_NPP3: Pixels, means_NTT3: Pixels, own_PP3: Pixels, region_TT: Region) -> npt.NDArray[np.bool_]:
    """Find which of N pictures show, within a region, what another picture shows there.

    Args:
        pixels_NPP3: The N pictures.
        means_NTT3: Their `tile_means`.
        own_PP3: The other picture. Its blank tiles do not count.
        region_TT: The region to compare.

    Returns:
        [N] bool.
    """
    content_TT = region_TT & _not_blank(own_PP3)
    shown_N = np.zeros(len(pixels_NPP3), bool)
    if content_TT.sum() >= SHOWN_TILES:
        # Tile means differ less than pixels do, so most pictures are ruled out without comparing their pixels.
        near_NTT = ((means_NTT3 - tile_means(own_PP3)) ** 2).mean(-1) < AGREES**2
        near_N = np.flatnonzero(near_NTT[:, content_TT].mean(1) >= SHOWN)
        shown_N[near_N] = agreement(pixels_NPP3[near_N], own_PP3)[:, content_TT].mean(1) >= SHOWN
    return shown_N


def blanked(image: Image.Image, region_TT: Region) -> Image.Image:
    """Return the picture with everything outside the region painted white."""
    picture = rgb(image)
    mask = Image.fromarray(region_TT.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", picture.size, "white"), mask)


def blank(pixels_PP3: Pixels, region_TT: Region) -> bool:
    """Tell whether a picture shows nothing within a region."""
    inside_N3 = pixels_PP3[_pixels_of(region_TT)]
    return len(inside_N3) == 0 or bool(inside_N3.std(axis=0).max() < BLANK_DEVIATION)


def _not_blank(pixels_PP3: Pixels) -> Region:
    """Return the tiles [T, T] in which a picture shows something."""
    variance_TT3 = tile_means(pixels_PP3**2) - tile_means(pixels_PP3) ** 2
    return variance_TT3.max(-1) >= BLANK_DEVIATION**2


def _pixels_of(region_TT: Region) -> npt.NDArray[np.bool_]:
    return np.kron(region_TT, np.ones((SIDE // TILES, SIDE // TILES), bool))
