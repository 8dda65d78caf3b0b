"""Generate images as a service does, with a diffusers pipeline, mitigated or not, and measure the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from audit.errors import UsageError
from audit.mitigation.inference import mitigated
from audit.mitigation.methods.method import Method
from audit.mitigation.methods.rescale import Rescale
from audit.models.model import Model
from audit.scoring.batching import Rows
from audit.scoring.generation import produce

# Shapes: B images of a batch, S seeds; C, H and W of the latent.

SERVED = pa.schema(
    [
        ("caption", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.binary()),  # PNG; null if it is not finite
        ("seconds", pa.float64()),  # time of the batch divided by its number of images
    ]
)


@dataclass(frozen=True)
class Setting:
    """One way to serve: `audit.mitigated(pipeline, method, empty_pooled=...)`; no mitigation if the method is None."""

    method: Method | None
    empty_pooled: bool = False

    @property
    def name(self) -> str:
        """The name of the method, or "none"."""
        return "none" if self.method is None else self.method.name

    @property
    def settings(self) -> str:
        """The settings of the method, such as "bos_scale=1.25, keep=eos"; empty without mitigation."""
        return "" if self.method is None else str(self).partition("(")[2].removesuffix(")")

    @property
    def slug(self) -> str:
        """A name for files, which differs between settings."""
        return "plain" if self == PLAIN else f"{self.name}-{sha256(self.settings.encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        if self.method is None:
            return "plain"
        return f"{str(self.method).removesuffix(')')}, empty_pooled=True)" if self.empty_pooled else str(self.method)


PLAIN = Setting(None)


def to_measure(methods: Sequence[Method], empty_pooled: bool = False) -> list[Setting]:
    """List PLAIN and then every method, each once.

    `Rescale(1, "all")` changes nothing and is left out, because it equals PLAIN, unless the pooled vector changes.

    Args:
        methods: The methods.
        empty_pooled: As for `audit.mitigated`.

    Returns:
        The settings.

    Raises:
        UsageError: There is nothing to compare with PLAIN.
    """
    known = {str(method): method for method in methods}
    same = () if empty_pooled else (Rescale(1.0, "all"),)
    settings = [Setting(method, empty_pooled) for method in known.values() if method not in same]
    if not settings:
        raise UsageError("there is nothing to measure", hint="Give a method that changes something.")
    return [PLAIN, *settings]


@torch.inference_mode()
def serve(
    model: Model,
    captions: Sequence[str],
    seeds: Sequence[int] = (0,),
    steps: int = 50,
    guidance_scale: float = 7.5,
    setting: Setting = PLAIN,
    batch_size: int | None = None,
) -> pa.Table:
    """Generate images of captions with a pipeline: one row per caption and seed, caption-major, as in SERVED.

    The noise is that of `audit.generate`; with PLAIN, so are the images.

    Args:
        model: The model to serve.
        captions: Captions to generate.
        seeds: Seeds of the initial noise.
        steps: Number of denoising steps.
        guidance_scale: Classifier-free guidance scale.
        setting: How to mitigate.
        batch_size: Images per batch; by default as many as fit in memory.

    Returns:
        A table of schema SERVED.

    Raises:
        UsageError: Captions, seeds or batch_size are invalid.
        AuditError: `audit.mitigated` does not support the pipeline.
    """
    pipeline, rows = model.pipeline(), Rows(model, captions, seeds, batch_size)
    mitigation: AbstractContextManager[None] = nullcontext()
    if setting.method is not None:
        mitigation = mitigated(pipeline, setting.method, empty_pooled=setting.empty_pooled)

    def run(at: slice) -> list[dict[str, Any]]:
        caption_B, seed_B = np.divmod(np.arange(at.start, at.stop), len(rows.seeds))
        began = time.perf_counter()
        noise_BCHW = rows.noise_SCHW[torch.from_numpy(seed_B).to(model.device)]
        batch = [rows.captions[caption] for caption in caption_B]
        latents_BCHW = model.call_pipeline(pipeline, batch, noise_BCHW, steps, guidance_scale)
        images = produce(model, latents_BCHW, "image")
        seconds = (time.perf_counter() - began) / len(caption_B)
        return [
            {"caption": rows.captions[caption], "seed": rows.seeds[seed], "seconds": seconds}
            | {"image": image if finite else None}
            for caption, seed, image, finite in zip(caption_B, seed_B, images["values"], images["finite"], strict=True)
        ]

    with mitigation:
        found = rows.each("serve", run)
    return pa.Table.from_pylist([row for part in found for row in part], schema=SERVED)
