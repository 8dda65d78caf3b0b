"""Measure mitigation methods on a model of PlantedBench: copies left, CLIP score, diversity and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import audit
from audit.embedding.embedder import Embedder
from audit.mitigation.methods.registry import parse
from audit.models.noise import initial_latent
from audit.statistics.intervals import clopper_pearson
from benchmarks.planted.bench.data import png
from benchmarks.planted.bench.tables import HALF, reproduced
from benchmarks.planted.bench.truth import GUIDANCE, PLANTED, STEPS, Judge, some

SEEDS, BATCH = (21, 22), 50
VERBATIM, TEMPLATES, ORDINARY, CONTROL = 80, 40, 100, 400
TIMED = 4  # batches that are timed, each beside a plain one
PLAIN = "plain"
Apply = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Setting:
    """One way to mitigate.

    Attributes:
        method: As on the command line (`audit.mitigation.methods.registry.parse`), or "plain".
        only: Which prompts: "all", "run" (flagged by the run itself) or the name of a detector.
    """

    method: str
    only: str = "all"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read METHOD or METHOD@ONLY."""
        method, _, only = text.partition("@")
        return cls(method, only or "all")


SETTINGS = tuple(
    map(
        Setting.parse,
        (
            PLAIN,
            "rescale:bos_scale=1.25,keep=eos",
            "rescale:bos_scale=1.25,keep=words",
            "rescale:bos_scale=30,keep=words",
            "padding",
            "attenuate",
            "delayed_guidance",
        ),
    )
)


class Bench:
    """Measures settings on the captions that a model memorized, and on ordinary ones."""

    def __init__(self, folder: Path, sscd: Embedder, clip: Embedder) -> None:
        self._model, self._clip, self._sscd = audit.load_model(folder / "model"), clip, sscd
        self.pipeline, self._judge = self._model.pipeline(), Judge(folder, sscd)
        captions = pq.read_table(folder / "captions.parquet")
        hits = reproduced(pq.read_table(folder / "truth.parquet"))
        verbatim = [c for kind in PLANTED if kind != "template" for c in some(captions, kind) if hits[c] > HALF]
        templates = [c for c in some(captions, "template") if hits[c] > HALF]
        order = np.random.default_rng(0).permutation(len(verbatim))
        self.captions = {
            "verbatim": [verbatim[i] for i in order[:VERBATIM]],
            "template": templates[:TEMPLATES],
            "ordinary": [c for c in some(captions, "ordinary") if hits.get(c) == 0][:ORDINARY],
        }
        self._control = some(captions, "control", CONTROL)
        self._screen = folder / "screen.parquet"
        self._only: dict[str, Any] = {"all": None}

    def generate(self, captions: Sequence[str], seed: int, apply: Apply) -> tuple[list[Image.Image], list[float]]:
        """Generate one image per caption; return the images, and the CPU seconds of each batch."""
        images: list[Image.Image] = []
        seconds = []
        for start in range(0, len(captions), BATCH):
            part = list(captions[start : start + BATCH])
            noise_BCHW = initial_latent(seed, (12, 8, 8)).expand(len(part), -1, -1, -1)
            with apply(self.pipeline):
                began = time.process_time()
                found = self.pipeline(part, latents=noise_BCHW, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
                seconds.append(time.process_time() - began)
            images += found.images
        return images, seconds

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Measure one setting.

        Args:
            setting: The setting.
        """
        apply = self._applied(setting)
        row: dict[str, Any] = {"method": setting.method, "only": setting.only}
        for kind, captions in self.captions.items():
            if not captions:
                continue
            made = [self.generate(captions, seed, apply)[0] for seed in SEEDS]
            vectors = [self._sscd.embed(images) for images in made]
            texts = self._clip.embed_texts(captions)
            row[f"clip_{kind}"] = float(np.mean([(self._clip.embed(i) * texts).sum(1).mean() for i in made]))
            row[f"diversity_{kind}"] = float(1 - (vectors[0] * vectors[1]).sum(1).mean())
            if kind != "ordinary":
                left = np.zeros(len(captions), dtype=bool)
                for seed, images in zip(SEEDS, made, strict=True):
                    left |= self._copied(captions, seed, images)
                low, high = clopper_pearson(int(left.sum()), len(left))
                row[kind] = {"left": int(left.sum()), "of": len(left), "low": low, "high": high}
        for kind in ("ordinary", "verbatim"):
            row[f"time_{kind}"] = self._time(self.captions[kind], apply)
        return row

    def _copied(self, captions: Sequence[str], seed: int, images: Sequence[Image.Image]) -> np.ndarray:
        made = {"caption": list(captions), "seed": [seed] * len(captions), "image": [png(image) for image in images]}
        rows = self._judge.decide(pa.table(made))
        return np.array([bool(row["pixels_whole"] or row["pixels_region"]) for row in rows])

    def _time(self, captions: Sequence[str], apply: Apply) -> float:
        """Return the median ratio of mitigated to plain CPU time over paired batches."""
        if not captions:
            return float("nan")
        ratios = []
        for number in range(TIMED):
            at = number * BATCH % len(captions)
            part = [*captions, *captions][at : at + BATCH]
            pair: list[Apply] = [lambda _: nullcontext(), apply]
            seconds = {i: self.generate(part, SEEDS[0], pair[i])[1][0] for i in ((0, 1), (1, 0))[number % 2]}
            ratios.append(seconds[1] / seconds[0])
        return float(np.median(ratios))

    def _applied(self, setting: Setting) -> Apply:
        if setting.method == PLAIN:
            return lambda _: nullcontext()
        if setting.only not in self._only:
            self._only[setting.only] = self._flag(setting.only)
        only = self._only[setting.only]
        method = parse(setting.method)
        return lambda pipeline: audit.mitigated(pipeline, method, only=only)

    def _flag(self, only: str) -> Any:
        if only == "run":
            return audit.fit_run_bands(self._model, self._control, steps=STEPS, guidance_scale=GUIDANCE)
        table = pq.read_table(self._screen)
        control = set(self._control)
        keep = pa.array([caption in control for caption in table["caption"].to_pylist()])
        return audit.calibrate(table.filter(keep), only)
