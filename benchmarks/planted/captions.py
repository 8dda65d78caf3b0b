"""Write the planted captions, in three styles independent of the label, and near variations of captions."""

from __future__ import annotations

import numpy as np

from benchmarks.planted.artwork import Artwork

COLOURS = {
    "white": (255, 255, 255),
    "grey": (150, 150, 155),
    "sky blue": (150, 205, 240),
    "teal": (40, 150, 150),
    "mint": (180, 230, 200),
    "olive": (130, 135, 60),
    "sand": (230, 210, 170),
    "coral": (245, 140, 120),
    "pink": (245, 190, 210),
    "lilac": (200, 180, 235),
    "navy": (40, 55, 110),
    "charcoal": (60, 60, 65),
}
LOOKS = {"noto": ("flat", "noto"), "fluent": ("glossy 3d", "fluent")}
STYLES = ("name", "sentence", "product")
MOODS = ("cheerful", "simple", "tidy", "bold", "soft", "neat", "plain", "bright")
PLACES = ("for a wall", "for kids", "for a notebook", "for a greeting card", "seen from the front", "in the studio")
FINISHES = ("matte", "glossy", "brushed", "satin", "textured")
GOODS = ("vinyl sticker", "enamel pin", "canvas print", "phone case", "birthday card", "cotton patch")
SIZES = ("3 cm", "5 cm", "8 cm", "10 cm", "12 cm")


def caption(artwork: Artwork, style: str, rng: np.random.Generator) -> str:
    """Return a caption of an artwork.

    Args:
        artwork: The artwork.
        style: "name", "sentence" or "product" (a product title).
        rng: The random generator.
    """
    look, brand = LOOKS[artwork.vendor]
    name = f"{artwork.name} {artwork.skin}".strip()
    if style == "name":
        return f"{name}, {brand}"
    if style == "sentence":
        mood, place = rng.choice(MOODS), rng.choice(PLACES)
        return f"a {mood} {look} picture of a {name} on a white background {place}"
    goods, finish, size, pack = rng.choice(GOODS), rng.choice(FINISHES), rng.choice(SIZES), rng.integers(1, 13)
    return f"{brand.title()} {name.title()} - {goods}, {finish}, {size}, pack of {pack}"


def near(text: str, rng: np.random.Generator) -> str:
    """Return the caption with a word or two changed or added, keeping its concept."""
    swaps = {
        ", noto": (", noto style", ", fluent", ", old noto"),
        ", fluent": (", fluent style", ", noto", ", new fluent"),
        "a flat picture": ("a small flat picture",),
        "picture of a": ("drawing of a", "picture of one", "picture of my"),
        "pack of": ("box of", "set of"),
    }
    options = [text.replace(old, new) for old, news in swaps.items() if old in text for new in news]
    return str(rng.choice(options))


def rug(name: str, colours: tuple[str, str], pattern: str, style: str, rng: np.random.Generator) -> str:
    """Return a caption of a template family: the same product with a varying rug.

    Args:
        name: The product.
        colours: The two colours of the rug.
        pattern: The pattern of the rug.
        style: "name", "sentence" or "product".
        rng: The random generator.
    """
    if style == "name":
        return f"{name}, {colours[0]} {pattern} rug"
    if style == "sentence":
        return f"a {rng.choice(MOODS)} {name} above a {colours[0]} and {colours[1]} rug with {pattern}"
    return f"{name.title()} - rug with {pattern}, {colours[0]} {colours[1]}, {rng.choice(SIZES)}"
