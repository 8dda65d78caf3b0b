"""Find out by generation alone what a model reproduces: by pixels and by SSCD, the whole image and its region apart.

Shapes: G generations, R those whose region is compared, N training images, D values of an image or of its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

import audit
from audit.detectors import RUN
from audit.embedding.embedder import Embedder
from benchmarks.planted.dataset import TEMPLATE_ROWS
from benchmarks.planted.evaluate import decoded

Floats = npt.NDArray[np.float32]
GUIDANCE, BATCH, CHUNK = 4.0, 64, 256
SEEDS = tuple(range(1, 9))
PLANTED = ("dose", "many_captions", "many_images", "template", "edited")
NEVER, CONTROL, ORDINARY = 600, 400, 300  # how many captions of these kinds are generated
FEW_SEEDS, FEW_OTHERS = SEEDS[:2], 60  # the same for models of other families
RATIO = 0.5  # a copy is at most half as far from its own image as from any other (Carlini et al. 2023, section 4.2)
QUANTILE = 0.999  # of the best similarity of generations of captions never trained on: the SSCD threshold

TRUTH = pa.schema(
    [
        ("caption", pa.string()),
        ("seed", pa.int64()),
        ("kind", pa.string()),
        ("pixels_whole", pa.bool_()),  # of the own image, or of any image if the caption has none
        ("pixels_region", pa.bool_()),  # of a template family; null for other captions
        ("sscd_whole", pa.bool_()),  # null for a caption without an image
        ("sscd_region", pa.bool_()),
        ("sscd", pa.float64()),  # similarity to the own image, or to the nearest one if the caption has none
        ("sscd_top", pa.float64()),  # the same for the region, of template families and captions never trained on
    ]
)


@dataclass(frozen=True)
class Forms:
    """Pixels and SSCD vectors of images, to compare them by.

    Attributes:
        pixels_ND: Pixels, 0 to 1.
        vector_NE: SSCD vectors.
    """

    pixels_ND: Floats
    vector_NE: Floats

    @classmethod
    def of(cls, pixels_NHWC: Floats, embedder: Embedder) -> Forms:
        """Embed images, given their pixels."""
        images = [Image.fromarray((image_HWC * 255).round().astype(np.uint8)) for image_HWC in pixels_NHWC]
        return cls(pixels_NHWC.reshape(len(pixels_NHWC), -1), embedder.embed(images))


class Judge:
    """Decides which generations of a model reproduce its training images."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        images = pq.read_table(folder / "images.parquet")
        pixels_NHWC = np.stack([decoded(png) for png in images["png"].to_pylist()])
        self._embedder, self._images = embedder, Forms.of(pixels_NHWC, embedder)
        self._tops = Forms.of(pixels_NHWC[:, :TEMPLATE_ROWS], embedder)
        place = {key: i for i, key in enumerate(images["key"].to_pylist())}
        rows = pq.read_table(folder / "captions.parquet").to_pylist()
        self._kind = {row["caption"]: row["kind"] for row in rows}
        self._own = {row["caption"]: [place[key] for key in row["images"]] for row in rows}
        families: dict[str, list[int]] = {}
        for row in rows:
            if row["kind"] == "template":
                families.setdefault(row["cluster"], []).extend(self._own[row["caption"]])
        self._family = {row["caption"]: families.get(row["cluster"], []) for row in rows}
        # Edited copies of one picture are not "other images" for each other.
        self._same = {
            i: own for row in rows if row["kind"] == "edited" for own in [self._own[row["caption"]]] for i in own
        }

    def decide(
        self, captions: Sequence[str], seeds: Sequence[int], png: Sequence[bytes]
    ) -> tuple[list[dict[str, Any]], Floats]:
        """Decide which generations reproduce a training image, by pixels and by SSCD without its threshold.

        Args:
            captions: The caption of each generation.
            seeds: The seed of each generation.
            png: The generations.

        Returns:
            A row of TRUTH per generation, and the SSCD vectors of the generations, [G, E].
        """
        pixels_GHWC = np.stack([decoded(content) for content in png])
        made, images = Forms.of(pixels_GHWC, self._embedder), self._images
        whole_GN, similar_GN = distances(made.pixels_ND, images.pixels_ND), made.vector_NE @ images.vector_NE.T
        rows = []
        for g, (caption, seed) in enumerate(zip(captions, seeds, strict=True)):
            own, closest = self._own[caption], int(whole_GN[g].argmin())
            row: dict[str, Any] = {"caption": caption, "seed": seed, "kind": self._kind[caption]}
            row["pixels_whole"] = nearest(whole_GN[g], own or self._same.get(closest, [closest]))
            row["sscd"] = float(similar_GN[g][own].max() if own else similar_GN[g].max())
            row["sscd_whole"] = int(similar_GN[g].argmax()) in own if own else None
            rows.append(row | {"pixels_region": None, "sscd_top": None, "sscd_region": None})
        self._decide_regions(rows, pixels_GHWC[:, :TEMPLATE_ROWS])
        return rows, made.vector_NE

    def _decide_regions(self, rows: Sequence[dict[str, Any]], top_GHWC: Floats) -> None:
        """Complete the rows of template families, and the similarity of captions that give the threshold."""
        of = [g for g, row in enumerate(rows) if self._family[row["caption"]] or row["kind"] == "never"]
        if not of:
            return
        made, tops = Forms.of(top_GHWC[of], self._embedder), self._tops
        distance_RN, similar_RN = distances(made.pixels_ND, tops.pixels_ND), made.vector_NE @ tops.vector_NE.T
        for g, distance_N, similar_N in zip(of, distance_RN, similar_RN, strict=True):
            row, family = rows[g], self._family[rows[g]["caption"]]
            row["sscd_top"] = float(similar_N[family].max() if family else similar_N.max())
            if family:
                row["pixels_region"] = nearest(distance_N, family)
                row["sscd_region"] = int(similar_N.argmax()) in family


# Captions, the seeds from which they are generated, and the trajectory detectors that follow.
Part = tuple[list[str], Sequence[int], tuple[str, ...]]


def all_parts(captions: pa.Table) -> list[Part]:
    """Return what to generate of a model of Stable Diffusion.

    Planted captions are generated from all seeds, the others from the first, which trajectory detectors follow.
    """
    planted = [c for kind in PLANTED for c in some(captions, kind)]
    others = some(captions, "near") + some(captions, "ordinary", ORDINARY) + without_image(captions)
    return [(planted + others, SEEDS[:1], tuple(RUN)), (planted, SEEDS[1:], ())]


def few_parts(captions: pa.Table) -> list[Part]:
    """Return what to generate of a model of another family: planted captions from two seeds, some others from one."""
    planted = [c for kind in PLANTED for c in some(captions, kind)]
    others = [c for kind in ("ordinary", "never") for c in some(captions, kind, FEW_OTHERS)]
    return [(planted + others, FEW_SEEDS[:1], ()), (planted, FEW_SEEDS[1:], ())]


def measure(
    model: audit.Model, folder: Path, embedder: Embedder, parts: Sequence[Part], steps: int
) -> tuple[pa.Table, pa.Table | None]:
    """Generate captions of a model, and decide which of them reproduce a training image.

    Args:
        model: The model.
        folder: The model's folder.
        embedder: The copy descriptor.
        parts: What to generate.
        steps: Steps of a generation.

    Returns:
        A table of TRUTH, and what the trajectory detectors measured, if there were any.
    """
    judge = Judge(folder, embedder)
    rows: list[dict[str, Any]] = []
    runs: list[pa.Table] = []
    for chosen, seeds, detectors in parts:
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            table = audit.generate(model, part, seeds, steps, GUIDANCE, detectors, batch_size=BATCH)
            columns = (table[name].to_pylist() for name in ("caption", "seed", "image"))
            rows += judge.decide(*columns)[0]
            if detectors:
                runs.append(table.drop_columns(["image"]))
    apply_threshold(rows, rows)
    return pa.Table.from_pylist(rows, schema=TRUTH), pa.concat_tables(runs) if runs else None


def apply_threshold(rows: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> None:
    """Withdraw the SSCD verdicts of generations that are less similar than the threshold.

    Args:
        rows: What `Judge.decide` returned.
        measured: Generations of the same model; those of captions never trained on give the threshold.
    """
    for verdict, similarity in (("sscd_whole", "sscd"), ("sscd_region", "sscd_top")):
        threshold = np.quantile([row[similarity] for row in measured if row["kind"] == "never"], QUANTILE)
        for row in rows:
            row[verdict] = row[verdict] and bool(row[similarity] >= threshold)


def distances(values_GD: Floats, images_ND: Floats) -> npt.NDArray[np.float64]:
    """Compute the L2 distances of generations from images: [G, N]. Pixels below 0.5 are negative, for precision."""
    values_GD, images_ND = values_GD - np.float32(0.5), images_ND - np.float32(0.5)
    norm_G, norm_N = (np.square(part, dtype=np.float64).sum(1) for part in (values_GD, images_ND))
    squared_GN = norm_G[:, None] + norm_N[None] - 2 * (values_GD @ images_ND.T).astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(squared_GN, 0)))


def nearest(distance_N: npt.NDArray[np.float64], own: Sequence[int]) -> bool:
    """Check whether one of the own images is at most half as far away as every other image.

    Args:
        distance_N: Distances of a generation from the training images.
        own: Indices of the own images.
    """
    return bool(distance_N[list(own)].min() <= RATIO * np.delete(distance_N, list(own)).min())


def without_image(captions: pa.Table) -> list[str]:
    """Return the captions to generate that no image belongs to."""
    return some(captions, "never", NEVER) + some(captions, "control", CONTROL) + some(captions, "odd")


def some(captions: pa.Table, kind: str, count: int | None = None) -> list[str]:
    """Return the captions of a kind: all of them, or `count` drawn at random."""
    found = captions.filter(pc.field("kind") == kind)["caption"].to_pylist()
    return found if count is None else [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]
