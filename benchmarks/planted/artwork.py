"""Fetch emoji artwork with the npm client, as named 64-px images de-duplicated by pixels."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
PACKAGES = {"noto": "emoji-datasource-google@16.0.0", "fluent": "@lobehub/fluent-emoji-3d@1.1.0"}
LOOKALIKE_RMS = 0.15  # two images closer than this (RMS of 0..1 pixels at 32 px, on white) count as one
SKINS = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium dark skin tone",
    "1F3FF": "dark skin tone",
}
# Words that many names share; they are not part of a concept.
COMMON_WORDS = """
    a an and at by facing for from in into of on or over person man woman men women people the to with
    without up down left right rightwards leftwards upwards downwards black white heavy sign symbol squared
    circled mark button large small medium light dark skin tone face
"""
COMMON = frozenset(COMMON_WORDS.split())


@dataclass(frozen=True)
class Artwork:
    """Describe one emoji of one vendor: `concept` is its set of content words, `path` an RGBA picture."""

    name: str
    vendor: str
    skin: str
    concept: frozenset[str]
    path: Path


def fetch(cache: Path) -> None:
    """Download and unpack the two packages into `cache` with `npm pack`."""
    cache.mkdir(parents=True, exist_ok=True)
    for vendor, package in PACKAGES.items():
        if not (cache / vendor).exists():
            packed = subprocess.run(
                ["npm", "pack", package, "--silent"], cwd=cache, check=True, capture_output=True, text=True
            )
            with tarfile.open(cache / packed.stdout.split()[-1]) as tar:
                tar.extractall(cache / vendor, filter="data")


def catalogue(cache: Path) -> list[Artwork]:
    """List the pictures of both vendors in the order of the emoji list, with skin tones after their base."""
    entries = json.loads((cache / "noto/package/emoji.json").read_text())
    folders = {"noto": cache / "noto/package/img/google/64", "fluent": cache / "fluent/package/assets"}
    found = []
    for entry in sorted(entries, key=lambda e: e["sort_order"]):
        name = re.sub(r"[^a-z0-9]+", " ", entry["name"].lower()).strip()
        concept = frozenset(name.split()) - COMMON
        if not concept or entry["category"] == "Component":
            continue
        variants = {"": entry["unified"]} | {
            SKINS[tones]: variant["unified"]
            for tones, variant in entry.get("skin_variations", {}).items()
            if tones in SKINS
        }
        for skin, code in variants.items():
            for vendor, folder in folders.items():
                path = folder / (code.lower() + (".webp" if vendor == "fluent" else ".png"))
                if path.exists():
                    found.append(Artwork(name, vendor, skin, concept, path))
    return found


def draw(artwork: Artwork, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Return the picture at 64 px in RGB on a background."""
    picture = Image.open(artwork.path).convert("RGBA")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE), (*background, 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def distinct(artworks: list[Artwork]) -> tuple[list[Artwork], np.ndarray]:
    """Return the first of each group of look-alikes, and its RMS distance to the nearest other one that is kept."""
    pixels_ND = np.stack([_small(artwork) for artwork in artworks])
    norm_N = np.square(pixels_ND).sum(1)
    limit = LOOKALIKE_RMS**2 * pixels_ND.shape[1]
    kept: list[int] = []
    for i, pixels_D in enumerate(pixels_ND):
        if not kept or (norm_N[kept] + norm_N[i] - 2 * pixels_ND[kept] @ pixels_D).min() >= limit:
            kept.append(i)
    chosen_KD = pixels_ND[kept]
    squared_KK = norm_N[kept][:, None] + norm_N[kept][None] - 2 * chosen_KD @ chosen_KD.T
    np.fill_diagonal(squared_KK, np.inf)
    nearest_K = np.sqrt(np.maximum(squared_KK.min(1), 0) / chosen_KD.shape[1])
    return [artworks[i] for i in kept], nearest_K


def _small(artwork: Artwork) -> np.ndarray:
    return np.asarray(draw(artwork).resize((32, 32), Image.Resampling.BOX), np.float32).ravel() / 255
