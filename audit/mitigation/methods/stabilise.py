"""`stabilise`: keep the norms of a run within those of control captions (after Broken Memories, KDD 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from audit.errors import AuditError, UsageError
from audit.mitigation.methods.bands import RunBands
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts, where_rows

# Shapes: B rows of the UNet, N images, S steps; C, H and W of the latent.

NEEDS_UNET = "takes clean latents from a UNet's prediction of epsilon or v"


@dataclass(frozen=True)
class Stabilise(Method):
    """Give the predicted clean latent its reference norm, and clamp latents and updates (after Broken Memories).

    At each step, after guidance: x0 = (x - sigma eps) / alpha is rescaled to the median of its norm over control
    captions. The scheduler then makes its step. The norm of the update is clamped into the band of control captions,
    and after it the norm of the latent.

    Attributes:
        bands: Norms of control captions (`audit.fit_run_bands`), of runs with the same steps and guidance scale.
        tail: The fraction of control captions below a band, and above it.
    """

    name: ClassVar[str] = "stabilise"
    changes_latents: ClassVar[bool] = True
    needs_unet: ClassVar[str] = NEEDS_UNET

    bands: RunBands
    tail: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.tail < 0.5:
            raise UsageError(f"tail is {self.tail}", hint="Give a fraction below 0.5.")

    def check_weights(self, pipeline: Any) -> None:
        """Raise UsageError if the pipeline's weights are not those of the bands."""
        self.bands.check_weights(pipeline)

    def begin(self, prompts: Prompts) -> Effect:
        """Return the effect on one call.

        Args:
            prompts: The prompts of the call.
        """
        return _Stabilising(self, prompts.pipeline)


class _Stabilising(Effect):
    def __init__(self, method: Stabilise, pipeline: Any) -> None:
        bands, self._pipeline, self._bands = method.bands, pipeline, method.bands
        self._clean_S = bands.band("clean", method.tail)[1]
        self._update_3S, self._latent_3S = (bands.band(name, method.tail) for name in ("update", "latent"))

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        if forward.step == 0:
            self._bands.check_call(self._pipeline, tuple(forward.latents_NCHW.shape[1:]))
        guided_NCHW = guided_prediction(self._pipeline, forward, predicted_BCHW)
        space = CleanLatents(self._pipeline.scheduler, forward)
        clean_NCHW = space.clean(guided_NCHW)
        rescaled_NCHW = clean_NCHW * (self._clean_S[forward.step] / norms(clean_NCHW)).view(-1, 1, 1, 1)
        changed_NCHW = space.prediction(rescaled_NCHW).to(predicted_BCHW.dtype)
        branches = 1 + forward.guided
        on_B = forward.on_N.repeat(branches).to(predicted_BCHW.device)
        return where_rows(on_B, changed_NCHW.repeat(branches, 1, 1, 1), predicted_BCHW)

    def latents(self, forward: Forward, latents_NCHW: Tensor) -> Tensor:
        before_NCHW = forward.latents_NCHW.to(_wide(latents_NCHW))
        update_NCHW = _clamped(latents_NCHW.to(before_NCHW) - before_NCHW, self._update_3S[:, forward.step])
        changed_NCHW = _clamped(before_NCHW + update_NCHW, self._latent_3S[:, forward.step]).to(latents_NCHW.dtype)
        return where_rows(forward.on_N.to(latents_NCHW.device), changed_NCHW, latents_NCHW)


class CleanLatents:
    """Translates the model's predictions at one timestep into predicted clean latents, and back."""

    def __init__(self, scheduler: Any, forward: Forward) -> None:
        self._type = scheduler.config.prediction_type
        if self._type not in ("epsilon", "v_prediction"):
            what = f"the prediction type {self._type} is not supported"
            raise AuditError(what, hint="Use a model that predicts epsilon or v.", kind="unsupported_model")
        self._noisy_NCHW = forward.latents_NCHW.to(_wide(forward.latents_NCHW))
        kept = scheduler.alphas_cumprod[int(forward.timestep)].to(self._noisy_NCHW)
        self._alpha, self._sigma = kept.sqrt(), (1 - kept).sqrt()

    def clean(self, predicted_NCHW: Tensor) -> Tensor:
        """Return the clean latents of a prediction: [N, C, H, W], in float32 or wider."""
        predicted_NCHW = predicted_NCHW.to(self._noisy_NCHW)
        if self._type == "epsilon":
            return (self._noisy_NCHW - self._sigma * predicted_NCHW) / self._alpha
        return self._alpha * self._noisy_NCHW - self._sigma * predicted_NCHW

    def prediction(self, clean_NCHW: Tensor) -> Tensor:
        """Return the prediction that has these clean latents: [N, C, H, W]."""
        if self._type == "epsilon":
            return (self._noisy_NCHW - self._alpha * clean_NCHW) / self._sigma
        return (self._alpha * self._noisy_NCHW - clean_NCHW) / self._sigma


def guided_prediction(pipeline: Any, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
    """Combine both guidance branches as the pipeline does: [N, C, H, W].

    Args:
        pipeline: The pipeline.
        forward: The forward that ran.
        predicted_BCHW: Its output.

    Raises:
        AuditError: The pipeline rescales after guidance.
    """
    if getattr(pipeline, "guidance_rescale", 0):
        raise AuditError("guidance_rescale is not supported by bands of runs", hint="Call with guidance_rescale=0.")
    if not forward.guided:
        return predicted_BCHW
    null_NCHW, conditional_NCHW = predicted_BCHW.chunk(2)
    return null_NCHW + forward.guidance_scale * (conditional_NCHW - null_NCHW)


def norms(latents_NCHW: Tensor) -> Tensor:
    """Compute the norm of each latent: [N], in float32 or wider."""
    return latents_NCHW.to(_wide(latents_NCHW)).flatten(1).norm(dim=1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _clamped(latents_NCHW: Tensor, band_3: Any) -> Tensor:
    """Rescale latents whose norm lies outside of a band to the nearest norm inside."""
    norm_N = norms(latents_NCHW)
    factor_N = norm_N.clamp(float(band_3[0]), float(band_3[2])) / norm_N
    return latents_NCHW * factor_N.view(-1, 1, 1, 1)
