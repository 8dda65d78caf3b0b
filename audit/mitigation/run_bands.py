"""Fit the norms of control captions' runs (`audit.mitigation.methods.bands`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from audit.errors import UsageError
from audit.mitigation.inference import mitigated
from audit.mitigation.methods.bands import RunBands
from audit.mitigation.methods.delayed_guidance import guidance_norm
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.mitigation.methods.stabilise import NEEDS_UNET, CleanLatents, guided_prediction, norms
from audit.models.model import Model
from audit.models.noise import initial_latent

# Shapes: B rows of the UNet, N images; C, H and W of the latent.

NORMS = ("guidance", "clean", "update", "latent")


def fit_run_bands(
    model: Model,
    control_captions: Sequence[str],
    steps: int = 50,
    guidance_scale: float = 7.5,
    seed: int = 0,
    batch_size: int = 16,
) -> RunBands:
    """Generate control captions without mitigation, and return the norms of their runs.

    Args:
        model: The model that serves.
        control_captions: Captions in the style of the prompts that the model was never trained on. `only=` needs at
            least 1 / `max_p` of them.
        steps: Number of denoising steps of the calls to compare.
        guidance_scale: Their guidance scale, above 1.
        seed: Seed of the noise of the first caption. Each later one has the next seed.
        batch_size: Images per batch.

    Returns:
        Bands for `audit.Stabilise(bands)` and `audit.mitigated(..., only=bands)`.

    Raises:
        UsageError: There are no captions, or no guidance.
        AuditError: The denoiser is not a UNet.
    """
    captions = list(control_captions)
    if not captions or guidance_scale <= 1 or steps < 1:
        what = f"{len(captions)} control captions, guidance_scale {guidance_scale}, {steps} steps"
        raise UsageError(f"bands cannot be fitted: {what}", hint="Give captions, and a guidance_scale above 1.")
    pipeline, recorder = model.pipeline(), _Recorder()
    with mitigated(pipeline, recorder), torch.inference_mode():
        for start in range(0, len(captions), batch_size):
            part = captions[start : start + batch_size]
            noise = [initial_latent(seed + start + number, model.latent_shape) for number in range(len(part))]
            pipeline(
                part,
                latents=torch.stack(noise).to(model.device, model.dtype),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                output_type="latent",
            )
    return RunBands(
        timesteps=tuple(float(t) for t in pipeline.scheduler.timesteps),
        guidance_scale=float(guidance_scale),
        latent_shape=tuple(model.latent_shape),
        weights_sha256=tuple(sorted(model.weights_sha256.items())),
        **{name: recorder.collected(name) for name in NORMS},
    )


@dataclass(frozen=True)
class _Recorder(Method):
    """Changes nothing, and records the norms of every run."""

    name: ClassVar[str] = "record"
    changes_latents: ClassVar[bool] = True
    needs_guidance: ClassVar[bool] = True
    needs_unet: ClassVar[str] = NEEDS_UNET

    calls: list[_Recording] = field(default_factory=list)

    def begin(self, prompts: Prompts) -> Effect:
        self.calls.append(_Recording(prompts.pipeline))
        return self.calls[-1]

    def collected(self, name: str) -> tuple[tuple[float, ...], ...]:
        """Return one norm: per run, one number per step."""
        rows = [torch.stack(call.found[name], dim=1).tolist() for call in self.calls]
        return tuple(tuple(row) for part in rows for row in part)


class _Recording(Effect):
    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.found: dict[str, list[Tensor]] = {name: [] for name in NORMS}

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        guided_NCHW = guided_prediction(self._pipeline, forward, predicted_BCHW)
        clean_NCHW = CleanLatents(self._pipeline.scheduler, forward).clean(guided_NCHW)
        self.found["guidance"].append(guidance_norm(predicted_BCHW).cpu())
        self.found["clean"].append(norms(clean_NCHW).cpu())
        return predicted_BCHW

    def latents(self, forward: Forward, latents_NCHW: Tensor) -> Tensor:
        self.found["update"].append(norms(latents_NCHW - forward.latents_NCHW).cpu())
        self.found["latent"].append(norms(latents_NCHW).cpu())
        return latents_NCHW
