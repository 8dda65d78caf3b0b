"""Tell which captions of a measured model reproduce an image, and which do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.planted.bench.truth import PLANTED

# A caption that reproduces in 1 to 4 of 8 seeds is half-memorized.
ANY, HALF_MEMORIZED, BY_SSCD = "any", "half", "sscd"


@dataclass(frozen=True)
class Labels:
    """The captions of a model, and in how many seeds each reproduces its image, or its family's region.

    Attributes:
        captions: The rows of `captions.parquet`.
        pixels: The number of seeds by pixels, for each caption that was generated.
        sscd: The same by SSCD.
        seeds: The number of seeds from which each caption was generated.
    """

    captions: list[dict[str, Any]]
    pixels: dict[str, int]
    sscd: dict[str, int]
    seeds: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> Labels:
        """Read the labels of a measured model.

        Args:
            folder: The model's folder, with `captions.parquet` and `truth.parquet`.
        """
        pixels: dict[str, int] = {}
        sscd: dict[str, int] = {}
        seeds: dict[str, int] = {}
        for row in pq.read_table(folder / "truth.parquet").to_pylist():
            caption = row["caption"]
            pixels[caption] = pixels.get(caption, 0) + bool(row["pixels_whole"] or row["pixels_region"])
            sscd[caption] = sscd.get(caption, 0) + bool(row["sscd_whole"] or row["sscd_region"])
            seeds[caption] = seeds.get(caption, 0) + 1
        return cls(pq.read_table(folder / "captions.parquet").to_pylist(), pixels, sscd, seeds)

    @cached_property
    def kind(self) -> dict[str, str]:
        """The kind of each caption."""
        return {row["caption"]: row["kind"] for row in self.captions}

    @cached_property
    def cluster(self) -> dict[str, str]:
        """The concept or family of each caption."""
        return {row["caption"]: row["cluster"] for row in self.captions}

    def in_most_seeds(self, caption: str) -> bool:
        """Tell whether a caption reproduces in more than half of its seeds, by pixels."""
        return 2 * self.pixels[caption] > self.seeds[caption]

    def positives(self, which: str = ANY) -> list[str]:
        """Return the planted captions that reproduce.

        Args:
            which: "any", in at least one seed by pixels; "half", in one to four of eight; "sscd", in at least one seed
                by SSCD.
        """
        counts = self.sscd if which == BY_SSCD else self.pixels
        found = [caption for caption, kind in self.kind.items() if kind in PLANTED and counts[caption] > 0]
        return [c for c in found if not self.in_most_seeds(c)] if which == HALF_MEMORIZED else found

    def negatives(self, kind: str) -> list[str]:
        """Return the captions of a kind that are not known to reproduce, by pixels."""
        return [caption for caption, own in self.kind.items() if own == kind and self.pixels.get(caption, 0) == 0]
