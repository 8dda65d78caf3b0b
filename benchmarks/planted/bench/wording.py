"""Write the captions of PlantedBench: one register for planted, never trained and control captions alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.planted import captions as text
from benchmarks.planted.artwork import Artwork

# Four ways to write a short caption, each with or without a mood, so that a concept has enough of them for repeated
# draws, and the styles keep their shares.
SHORT = ("{name}, {brand}", "{brand} {name}", "{name} in {brand} style", "{name} icon, {brand}")
SYLLABLES = ("zor", "quil", "mab", "teph", "ondu", "vex", "lirr", "gosk", "uthe", "pran", "wilj", "ceb")
SINGLE = ("untitled", "image", "photo", "new", "hello", "blue", "summer", "sale", "2019", "home", "art", "misc")
TRIES = 200


def caption(artwork: Artwork, style: str, rng: np.random.Generator) -> str:
    """Draw a caption of a picture.

    Args:
        artwork: The picture.
        style: "name", "sentence" or "product".
        rng: The random generator.
    """
    if style != "name":
        return text.caption(artwork, style, rng)
    brand = text.LOOKS[artwork.vendor][1]
    mood = str(rng.choice(("", *text.MOODS)))
    return str(rng.choice(SHORT)).format(name=f"{mood} {artwork.name}".strip(), brand=brand)


def near(artwork: Artwork, caption_text: str, rng: np.random.Generator) -> str:
    """Return a caption of the same picture with one word added, dropped or exchanged."""
    words = caption_text.split()
    name = set(artwork.name.split()) | set(artwork.name.title().split())
    free = [i for i, word in enumerate(words) if word.strip(",") not in name]
    at = int(rng.choice(free)) if free else len(words)
    how = int(rng.integers(3)) if free else 0
    if how == 0:
        return " ".join([*words[:at], str(rng.choice(text.MOODS)), *words[at:]])
    if how == 1 and len(words) > 2:
        return " ".join(words[:at] + words[at + 1 :])
    return " ".join([*words[:at], str(rng.choice(text.MOODS)), *words[at + 1 :]])


def rare(rng: np.random.Generator) -> str:
    """Return a caption of invented words."""
    return " ".join("".join(rng.choice(SYLLABLES, int(rng.integers(2, 5)))) for _ in range(int(rng.integers(3, 9))))


def shouted(artwork: Artwork, rng: np.random.Generator) -> str:
    """Return a caption as an advertisement writes it, in capitals."""
    goods, number = str(rng.choice(text.GOODS)), int(rng.integers(2, 90))
    return f"BUY NOW!!! {artwork.name} {goods} - ONLY {number} LEFT - FREE SHIPPING".upper()


def short(artwork: Artwork, rng: np.random.Generator) -> str:
    """Return a caption of one word."""
    return str(rng.choice((*SINGLE, *artwork.name.split())))


def long(artwork: Artwork, rng: np.random.Generator) -> str:
    """Return a caption that is longer than the text encoder reads."""
    looks = [replace(artwork, vendor=str(rng.choice(list(text.LOOKS)))) for _ in range(6)]
    return "; ".join(text.caption(look, "sentence", rng) for look in looks)


def fresh(make: Callable[[], str], taken: set[str]) -> str:
    """Draw captions until one is new, and remember it.

    Raises:
        RuntimeError: None of 200 captions is new.
    """
    for _ in range(TRIES):
        found = make()
        if found not in taken:
            taken.add(found)
            return found
    raise RuntimeError(f"no new caption in {TRIES} draws; the last one was {found!r}")
