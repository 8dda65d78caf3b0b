"""Measure mitigation methods on a model of PlantedBench: copies left, CLIP score, diversity and time.

Shapes: N captions, S seeds, G generations, D values of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from PIL import Image

import audit
from audit.defaults import DEFAULT_DETECTOR
from audit.embedding.embedder import Embedder
from audit.mitigation.methods.registry import parse
from audit.models.noise import initial_latent
from audit.statistics.intervals import clopper_pearson
from benchmarks.paired import rounds
from benchmarks.planted.bench.carriers import PARTS, Replaced
from benchmarks.planted.bench.data import png
from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.model import load
from benchmarks.planted.bench.screens import calibrated
from benchmarks.planted.bench.train import MODELS, ONE_PER_ENCODER
from benchmarks.planted.bench.truth import GUIDANCE, Judge, apply_threshold, some

SEEDS, BATCH = (21, 22), 64
VERBATIM, TEMPLATES, ORDINARY, CONTROL = 60, 20, 80, 400
TIMED, TIMED_BATCH = 4, 16  # calls that are timed, each beside a plain one
TIMED_MODEL = "dev-1"  # the others have the same networks
MAX_P = 0.1  # of flagged control captions, unless a setting says otherwise
PLAIN, STABILISE = "plain", "stabilise"
ALL, RUN, SCREEN = "all", "run", "screen"
Apply = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Setting:
    """One way to mitigate.

    Attributes:
        method: As on the command line (`audit.mitigation.methods.registry.parse`), "plain", or "stabilise", which gets
            the bands of the model's control captions.
        only: Which prompts: "all", or "run", those that the run itself flags.
        max_p: The fraction of control captions that the run flags.
        empty_pooled: Whether mitigated images get the pooled vector of the empty prompt.
    """

    method: str
    only: str = ALL
    max_p: float = MAX_P
    empty_pooled: bool = False

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read METHOD, METHOD@run or METHOD@run:MAX_P."""
        method, _, flagged = text.partition("@")
        only, _, max_p = flagged.partition(":")
        return cls(method, only or ALL, float(max_p or MAX_P))


# What each method is measured with, on one development model of each kind of text encoder.
SETTINGS = tuple(
    map(
        Setting.parse,
        (
            PLAIN,
            "rescale:bos_scale=1.25,keep=eos",
            "rescale:bos_scale=30,keep=words",
            "padding",
            "padding:token=none,zero_eos=false,zero_share=0.7",
            "attenuate",
            STABILISE,
            "delayed_guidance",
            "weak_guidance:scale=1",
            "dilute:share=0.5",
            "dilute:share=0.4",
            "dilute:share=0.5@run:0.1",
            "dilute:share=0.4@run:0.1",
            "dilute:share=0.4@run:0.2",
            "weak_guidance:scale=0@run:0.1",
        ),
    )
)
# The plain model, the paper's setting, and what these two models chose: for the other models.
FINALISTS = tuple(
    map(Setting.parse, (PLAIN, "rescale:bos_scale=1.25,keep=eos", "dilute:share=0.4", "dilute:share=0.4@run:0.1"))
)
TIMED_SETTINGS = {setting for setting in SETTINGS if setting.only == ALL} | set(FINALISTS)
# Models of other families. In sdxl and sd3 the caption also enters the network by a pooled vector; a share of 1 leaves
# everything else as it is. PixArt hides padding itself and has no BOS, so that END is all that can be masked.
WITH_POOLED = (
    Setting(PLAIN),
    Setting("rescale:bos_scale=1.25,keep=eos"),
    Setting("rescale:bos_scale=1.25,keep=eos", empty_pooled=True),
    Setting("dilute:share=0.4"),
    Setting("dilute:share=0.4", empty_pooled=True),
    Setting("dilute:share=1", empty_pooled=True),
)
FAMILY_SETTINGS = {
    "sdxl": WITH_POOLED,
    "pixart": (Setting(PLAIN), Setting("rescale:bos_scale=1,keep=words"), Setting("dilute:share=0.4")),
    "sd3": WITH_POOLED,
}


def settings_of(model: str) -> tuple[Setting, ...]:
    """Return the settings that a model of PlantedBench is measured with.

    Args:
        model: The name of the model.
    """
    return FAMILY_SETTINGS.get(model, SETTINGS if model in ONE_PER_ENCODER else FINALISTS)


@dataclass(frozen=True)
class Made:
    """What one setting made of one kind of captions, per seed and caption.

    Attributes:
        copied_SN: Whether the generation reproduces an own image, by pixels.
        similar_SN: The same by SSCD.
        clip_SN: Its CLIP score.
        vector_SND: Its SSCD vector.
    """

    copied_SN: npt.NDArray[np.bool_]
    similar_SN: npt.NDArray[np.bool_]
    clip_SN: npt.NDArray[np.float64]
    vector_SND: npt.NDArray[np.float32]

    def where(self, flagged_N: npt.NDArray[np.bool_], plain: Made) -> Made:
        """Take the flagged captions of this, and the others of the plain model."""
        return Made(
            np.where(flagged_N, self.copied_SN, plain.copied_SN),
            np.where(flagged_N, self.similar_SN, plain.similar_SN),
            np.where(flagged_N, self.clip_SN, plain.clip_SN),
            np.where(flagged_N[:, None], self.vector_SND, plain.vector_SND),
        )


class Bench:
    """Measures settings on the captions that a model memorized, and on ordinary ones."""

    def __init__(self, folder: Path, sscd: Embedder, clip: Embedder) -> None:
        self._folder, self._model, self._clip = folder, load(folder), clip
        self._steps = MODELS[folder.name].sampling_steps
        self.pipeline, self._judge = self._model.pipeline(), Judge(folder, sscd)
        captions, labels = pq.read_table(folder / "captions.parquet"), Labels.read(folder)
        self._truth = pq.read_table(folder / "truth.parquet").to_pylist()
        often = [caption for caption in labels.positives() if labels.in_most_seeds(caption)]
        verbatim = [caption for caption in often if labels.kind[caption] != "template"]
        templates = [caption for caption in often if labels.kind[caption] == "template"]
        order = np.random.default_rng(0).permutation(len(verbatim))
        ordinary = [caption for caption in labels.negatives("ordinary") if caption in labels.pixels][:ORDINARY]
        kinds = {"verbatim": [verbatim[i] for i in order[:VERBATIM]], "template": templates[:TEMPLATES]}
        self.captions = {kind: found for kind, found in (kinds | {"ordinary": ordinary}).items() if found}
        self._control = some(captions, "control", CONTROL)
        found = calibrated(folder, pq.read_table(folder / "screen.parquet"), DEFAULT_DETECTOR)
        p_of = dict(zip(found["caption"].to_pylist(), found["p_unseen"].to_pylist(), strict=True))
        self._flagged = {kind: np.array([p_of[c] <= MAX_P for c in found]) for kind, found in self.captions.items()}
        self._bands: audit.RunBands | None = None
        self._plain: dict[str, Made] = {}

    def measure(self, setting: Setting) -> list[dict[str, Any]]:
        """Measure one setting.

        Args:
            setting: The setting.

        Returns:
            A row for it. If it applies to all prompts, also a row for those alone that the default detector flags
            before the run: each image is then that of the method or that of the plain model.
        """
        apply = self._applied(setting)
        made = {kind: self._make(kind, apply) for kind in self.captions}
        if setting.method == PLAIN:
            self._plain = made
        row: dict[str, Any] = {"method": setting.method, "only": setting.only}
        if setting.only != ALL:
            row["max_p"] = setting.max_p
        if setting.empty_pooled:
            row["empty_pooled"] = True
        rows = [row | figures(made)]
        if setting.only == ALL and setting.method != PLAIN:
            parts = {kind: found.where(self._flagged[kind], self._plain[kind]) for kind, found in made.items()}
            rows.append(row | {"only": SCREEN, "max_p": MAX_P} | figures(parts))
            rows[-1]["flagged"] = {kind: int(found.sum()) for kind, found in self._flagged.items()}
        return rows

    def time(self, setting: Setting) -> dict[str, float]:
        """Return the median and the quartiles of the ratio of mitigated to plain CPU time, over paired calls.

        Half of the captions of a call are ordinary, half memorized. The model is timed as it is served: `make_fast`
        gains less where a method changes the embeddings in every step.

        Args:
            setting: The setting.
        """
        half = TIMED_BATCH // 2
        kinds = self.captions["ordinary"], self.captions["verbatim"]
        parts = [
            [found[(number * half + i) % len(found)] for found in kinds for i in range(half)]
            for number in range(TIMED + 1)  # the first pair warms up
        ]

        def calls(apply: Apply) -> Callable[[], Any]:
            left = iter(parts)
            return lambda: self._call(self._served, [(SEEDS[0], caption) for caption in next(left)], apply)

        pair = {PLAIN: calls(lambda _: nullcontext()), "other": calls(self._applied(setting))}
        seconds = rounds(pair, "cpu", TIMED, time.process_time)
        low, median, high = np.quantile(np.divide(seconds["other"], seconds[PLAIN]), [0.25, 0.5, 0.75])
        return {"median": float(median), "low": float(low), "high": float(high)}

    @cached_property
    def _served(self) -> Any:
        return audit.load_model(self._folder / "model").pipeline()

    def carriers(self) -> dict[str, int]:
        """Count the verbatim captions that still reproduce, when a part of the prompt is replaced by the empty prompt.

        Returns:
            The number per part of the prompt, from one seed, and that of the plain model as "nothing".
        """
        captions = self.captions["verbatim"]
        found = {"nothing": int(self._plain["verbatim"].copied_SN[0].sum())}
        for part in PARTS:
            images = self._generate(captions, SEEDS[:1], partial(audit.mitigated, method=Replaced(part)))
            copied_SN, *_ = self._judged(captions, SEEDS[:1], images)
            found[part] = int(copied_SN.sum())
        return found

    def _make(self, kind: str, apply: Apply) -> Made:
        captions = self.captions[kind]
        images = self._generate(captions, SEEDS, apply)
        copied_SN, similar_SN, vector_SND = self._judged(captions, SEEDS, images)
        image_SND = self._clip.embed(images).reshape(len(SEEDS), len(captions), -1)
        return Made(copied_SN, similar_SN, (image_SND * self._clip.embed_texts(captions)).sum(2), vector_SND)

    def _generate(self, captions: Sequence[str], seeds: Sequence[int], apply: Apply) -> list[Image.Image]:
        """Generate all captions from the first seed, then from the next."""
        pairs = [(seed, caption) for seed in seeds for caption in captions]
        images: list[Image.Image] = []
        for start in range(0, len(pairs), BATCH):
            images += self._call(self.pipeline, pairs[start : start + BATCH], apply)
        return images

    def _call(self, pipeline: Any, pairs: Sequence[tuple[int, str]], apply: Apply) -> list[Image.Image]:
        noise_BCHW = torch.stack([initial_latent(seed, self._model.latent_shape) for seed, _ in pairs])
        with torch.inference_mode(), apply(pipeline):
            found = pipeline(
                [caption for _, caption in pairs],
                latents=noise_BCHW,
                num_inference_steps=self._steps,
                guidance_scale=GUIDANCE,
                **self._model.CALL,
            )
        return list(found.images)

    def _judged(
        self, captions: Sequence[str], seeds: Sequence[int], images: Sequence[Image.Image]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """Tell which images reproduce an own image, by pixels and by SSCD, [S, N], and return their vectors."""
        shape = len(seeds), len(captions)
        of_image = [*captions] * len(seeds), np.repeat(seeds, len(captions)).tolist()
        rows, vector_GD = self._judge.decide(*of_image, [png(image) for image in images])
        apply_threshold(rows, self._truth)
        by_pixels_SN, by_sscd_SN = (
            np.array([bool(row[f"{by}_whole"] or row[f"{by}_region"]) for row in rows]).reshape(shape)
            for by in ("pixels", "sscd")
        )
        return by_pixels_SN, by_sscd_SN, vector_GD.reshape(*shape, -1)

    def _applied(self, setting: Setting) -> Apply:
        if setting.method == PLAIN:
            return lambda _: nullcontext()
        only = self._fitted() if setting.only == RUN else None
        method = audit.Stabilise(self._fitted()) if setting.method == STABILISE else parse(setting.method)
        pooled = setting.empty_pooled
        return partial(audit.mitigated, method=method, only=only, max_p=setting.max_p, empty_pooled=pooled)

    def _fitted(self) -> audit.RunBands:
        if self._bands is None:
            self._bands = audit.fit_run_bands(
                self._model, self._control, steps=self._steps, guidance_scale=GUIDANCE, batch_size=BATCH
            )
        return self._bands


def figures(made: dict[str, Made]) -> dict[str, Any]:
    """Return the copies left, the mean CLIP score and the diversity per kind of captions.

    Diversity is one minus the mean cosine similarity of the SSCD vectors of the two seeds.

    Args:
        made: What a setting made of each kind. A caption counts as left if it reproduces in any of the seeds.
    """
    row: dict[str, Any] = {}
    for kind, found in made.items():
        row[f"clip_{kind}"] = float(found.clip_SN.mean())
        row[f"diversity_{kind}"] = float(1 - (found.vector_SND[0] * found.vector_SND[1]).sum(1).mean())
        if kind != "ordinary":
            left, of = int(found.copied_SN.any(0).sum()), found.copied_SN.shape[1]
            low, high = clopper_pearson(left, of)
            by_sscd = int(found.similar_SN.any(0).sum())
            row[kind] = {"left": left, "of": of, "low": low, "high": high, "by_sscd": by_sscd}
    return row
