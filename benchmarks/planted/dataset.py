"""Build the captioned dataset with known truth: verbatim, partial, ordinary, near and none (see README.md)."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from audit.duplicates.images import edited
from benchmarks.planted import captions as text
from benchmarks.planted.artwork import SIDE, Artwork, catalogue, distinct, draw, fetch

VERBATIM = 100  # repeated images
VERBATIM_COPIES = 160  # rows per repeated image
FAMILIES, FAMILY_SIZE, FAMILY_COPIES = 12, 16, 10
NONE_CONCEPTS, NONE_CAPTIONS = 460, 8
CALIBRATION_SHARE = 0.72
ISOLATED_RMS = 0.2  # minimum distance of a planted image to any other, so that a pixel rule can identify it
TEMPLATE_ROWS = 40  # of the 64 rows of pixels, those that all images of a family share
PATTERNS = ("stripes", "checks", "dots", "diamonds", "zigzag", "rings")


@dataclass
class Planted:
    """Hold the dataset in memory.

    Attributes:
        images: The training images by key.
        held_out: The images by key that no model is trained on: one for each concept of the `none` captions.
        rows: (caption, key, whether models are trained on the row).
        labels: (caption, label, family, image_key). `image_key` is the training image that the caption may reproduce.
        calibration: The control captions.
        unseen: All images of the `none` concepts with a caption each, to train the embedders on.
    """

    images: dict[str, Image.Image] = field(default_factory=dict)
    held_out: dict[str, Image.Image] = field(default_factory=dict)
    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    labels: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    calibration: list[str] = field(default_factory=list)
    unseen: list[tuple[Image.Image, str]] = field(default_factory=list)


def build(cache: Path, seed: int, varied: int = 0) -> Planted:
    """Build the dataset from the fetched artwork. The same seed gives the same dataset.

    Args:
        cache: The folder of the artwork.
        seed: The seed.
        varied: The number of planted images whose rows are slightly edited copies, each with its own caption, instead
            of one file with one caption. They have the label `varied`, and all copies of an image have the same family.
            The first copy is unedited.
    """
    fetch(cache)
    rng = np.random.default_rng(seed)
    artworks, isolation = distinct(catalogue(cache))
    planted, stock, none = _assign(artworks, isolation, rng)
    taken: set[str] = set()
    data = Planted()
    for number, artwork in enumerate(planted[:varied]):
        _varied(data, number, artwork, taken, rng)
    for artwork in planted[varied:]:
        caption, image = _captioned(artwork, taken, rng)
        key = _add(data, caption, image, "verbatim", None, VERBATIM_COPIES)
        variation = _fresh(partial(text.near, caption, rng), taken)
        if variation:
            data.labels.append((variation, "near", None, key))
            data.rows.append((variation, key, False))
    for number in range(FAMILIES):
        _family(data, number, stock[2 * number : 2 * number + 2], taken, rng)
    off_limits = {id(a) for a in planted} | {id(a) for a in stock}
    none_concepts = {a.concept for a in none}
    for artwork in artworks:
        if artwork.concept in none_concepts:
            data.unseen.append((draw(artwork), text.caption(artwork, str(rng.choice(text.STYLES)), rng)))
        elif id(artwork) not in off_limits:
            caption, image = _captioned(artwork, taken, rng)
            _add(data, caption, image, "ordinary", None, 1)
    _none(data, none, taken, rng)
    return data


def _assign(
    artworks: list[Artwork], isolation: np.ndarray, rng: np.random.Generator
) -> tuple[list[Artwork], list[Artwork], list[Artwork]]:
    """Choose artworks to plant, artworks for the template families, and one artwork per `none` concept."""
    spread = Counter(word for concept in {a.concept for a in artworks} for word in concept)
    order = rng.permutation(len(artworks))
    chosen: list[Artwork] = []
    concepts: set[frozenset[str]] = set()
    for i in order:
        artwork = artworks[i]
        rare = all(spread[word] <= 3 for word in artwork.concept)
        if isolation[i] >= ISOLATED_RMS and not artwork.skin and rare and artwork.concept not in concepts:
            chosen.append(artwork)
            concepts.add(artwork.concept)
        if len(chosen) == VERBATIM + 2 * FAMILIES:
            break
    words = set().union(*concepts)
    none: dict[frozenset[str], Artwork] = {}
    for i in order:
        if not artworks[i].concept & words and not artworks[i].skin:
            none.setdefault(artworks[i].concept, artworks[i])
    return chosen[:VERBATIM], chosen[VERBATIM:], list(none.values())[:NONE_CONCEPTS]


def _captioned(artwork: Artwork, taken: set[str], rng: np.random.Generator) -> tuple[str, Image.Image]:
    caption = _fresh(partial(text.caption, artwork, str(rng.choice(text.STYLES)), rng), taken)
    if caption is None:  # two pictures with the same name need a longer style
        caption = _fresh(partial(text.caption, artwork, "product", rng), taken)
    assert caption is not None
    return caption, draw(artwork)


def _fresh(make: Callable[[], str], taken: set[str]) -> str | None:
    for _ in range(20):
        caption = make()
        if caption not in taken:
            taken.add(caption)
            return caption
    return None


def _add(data: Planted, caption: str, image: Image.Image, label: str, family: str | None, copies: int) -> str:
    key = f"{len(data.images):06d}"
    data.images[key] = image
    data.rows += [(caption, key, True)] * copies
    data.labels.append((caption, label, family, key))
    return key


def _varied(data: Planted, number: int, artwork: Artwork, taken: set[str], rng: np.random.Generator) -> None:
    """Add edited copies of one picture, as found on the web, each with a different caption."""
    image = draw(artwork)
    for copy in range(VERBATIM_COPIES):
        style = ("sentence", "product")[int(rng.integers(2))]  # there is only one caption of style `name`
        caption = _fresh(partial(text.caption, artwork, style, rng), taken)
        if caption is None:
            caption, _ = _captioned(artwork, taken, rng)
        _add(data, caption, edited(image, rng) if copy else image, "varied", f"varied-{number:02d}", 1)


def _family(data: Planted, number: int, furniture: list[Artwork], taken: set[str], rng: np.random.Generator) -> None:
    """Add a template family: two pictures on a fixed ground fill five eighths of the image, the rug below varies."""
    names = list(text.COLOURS)
    ground = text.COLOURS[names[number % len(names)]]
    name = f"{furniture[0].name} with {furniture[1].name}"
    for _ in range(FAMILY_SIZE):
        first, second = (str(c) for c in rng.choice(names, 2, replace=False))
        pattern, style = str(rng.choice(PATTERNS)), str(rng.choice(text.STYLES))
        caption = _fresh(partial(text.rug, name, (first, second), pattern, style, rng), taken)
        if caption:
            image = template(furniture, ground, (first, second), pattern)
            _add(data, caption, image, "partial", f"family-{number:02d}", FAMILY_COPIES)


def template(
    furniture: list[Artwork], ground: tuple[int, int, int], colours: tuple[str, str], pattern: str
) -> Image.Image:
    """Draw an image of a template family.

    Args:
        furniture: The two pictures that all images of the family share, in the upper five eighths.
        ground: The colour behind them.
        colours: The colours of the rug below.
        pattern: The pattern of the rug.
    """
    image = Image.new("RGB", (SIDE, SIDE), ground)
    for place, artwork in zip((0, 32), furniture, strict=True):
        image.paste(draw(artwork, ground).resize((32, 32), Image.Resampling.LANCZOS), (place, 4))
    first, second = (text.COLOURS[colour] for colour in colours)
    image.paste(_rug(first, second, pattern), (0, TEMPLATE_ROWS))
    return image


def _rug(first: tuple[int, int, int], second: tuple[int, int, int], pattern: str) -> Image.Image:
    rug = Image.new("RGB", (SIDE, SIDE - TEMPLATE_ROWS), first)
    pen = ImageDraw.Draw(rug)
    for x in range(0, SIDE, 8):
        if pattern == "stripes":
            pen.rectangle((x, 0, x + 3, 24), fill=second)
        for y in range(0, 24, 8):
            shapes = {
                "checks": lambda x=x, y=y: pen.rectangle((x, y, x + 3, y + 3), fill=second),
                "dots": lambda x=x, y=y: pen.ellipse((x + 1, y + 1, x + 6, y + 6), fill=second),
                "diamonds": lambda x=x, y=y: pen.polygon(
                    ((x + 4, y), (x + 7, y + 4), (x + 4, y + 7), (x, y + 4)), fill=second
                ),
                "zigzag": lambda x=x, y=y: pen.line(((x, y), (x + 4, y + 6), (x + 8, y)), fill=second, width=2),
                "rings": lambda x=x, y=y: pen.ellipse((x, y, x + 7, y + 7), outline=second, width=2),
            }
            if pattern in shapes:
                shapes[pattern]()
    return rug


def _none(data: Planted, none: list[Artwork], taken: set[str], rng: np.random.Generator) -> None:
    """Add captions of concepts that are never trained on: 72 % for calibration, the others as rows to evaluate.

    The rows of a concept share its picture. The captions name either look, whichever look the picture has.
    """
    for number, artwork in enumerate(none):
        held_out = number >= CALIBRATION_SHARE * len(none)
        key = f"{len(data.images) + len(data.held_out):06d}"
        if held_out:
            data.held_out[key] = draw(artwork)
        for k in range(NONE_CAPTIONS):
            other = Artwork(artwork.name, str(rng.choice(list(text.LOOKS))), "", artwork.concept, artwork.path)
            caption = _fresh(partial(text.caption, other, text.STYLES[k % 3], rng), taken)
            if caption is None:
                continue
            if held_out:
                data.rows.append((caption, key, False))
                data.labels.append((caption, "none", None, None))
            else:
                data.calibration.append(caption)


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """Return images as uint8 pixels [N, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def training_images(data: Planted) -> torch.Tensor:
    """Return the training images in the order of their keys, uint8 [N, 3, 64, 64]."""
    return pixels([data.images[key] for key in sorted(data.images)])


def distinct_images(data: Planted) -> torch.Tensor:
    """Return the images of verbatim and ordinary captions, which are all different, uint8 [N, 3, 64, 64]."""
    keys = sorted({str(key) for _, label, _, key in data.labels if label in ("verbatim", "ordinary")})
    return pixels([data.images[key] for key in keys])


def unplanted(data: Planted) -> tuple[torch.Tensor, list[str]]:
    """Return images, uint8 [N, 3, 64, 64], and captions that are not planted: ordinary ones and all of `unseen`."""
    ordinary = [(data.images[str(key)], caption) for caption, label, _, key in data.labels if label == "ordinary"]
    chosen = ordinary + data.unseen
    return pixels([image for image, _ in chosen]), [caption for _, caption in chosen]


def write(data: Planted, folder: Path, seed: int) -> None:
    """Write `captions.parquet`, `labels.parquet`, `calibration.txt` and `images/*.tar`.

    Args:
        data: The dataset.
        folder: The folder to write to. Each tar holds 500 images as lossless WebP, those held out last.
        seed: The seed for the order of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(data.rows))
    shuffled = [data.rows[i] for i in order]
    pq.write_table(
        pa.table({"caption": [caption for caption, *_ in shuffled], "key": [key for _, key, _ in shuffled]}),
        folder / "captions.parquet",
        compression="zstd",
    )
    names = ("caption", "label", "family", "image_key")
    columns = {
        name: pa.array(values, pa.string()) for name, values in zip(names, zip(*data.labels, strict=True), strict=True)
    }
    pq.write_table(pa.table(columns), folder / "labels.parquet", compression="zstd")
    (folder / "calibration.txt").write_text("".join(c + "\n" for c in data.calibration))
    (folder / "images").mkdir(exist_ok=True)
    images = data.images | data.held_out
    keys = sorted(images)
    for start in range(0, len(keys), 500):
        with tarfile.open(folder / "images" / f"{start // 500:05d}.tar", "w") as tar:
            for key in keys[start : start + 500]:
                content = io.BytesIO()
                images[key].save(content, "WEBP", lossless=True, quality=100, method=4)
                member = tarfile.TarInfo(f"{key}.webp")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
