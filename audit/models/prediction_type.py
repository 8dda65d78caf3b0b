"""Decide whether a UNet predicts noise or velocity (arXiv 2202.00512) if no configuration says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from audit.errors import AuditError, UsageError
from audit.models.model import Model
from audit.models.noise import initial_latents
from audit.models.schedulers import PREDICTIONS

# Shapes: C, H and W of the latent.

# A cosine of at least NOISE means that the UNet predicts noise; one of at most VELOCITY, that it predicts velocity.
NOISE, VELOCITY = 0.7, 0.3
_SIDE = 32
_DO = "Set model.prediction_type (prediction_type=) to epsilon or v_prediction."


def decide(
    model: Model, marked: Mapping[str, bool], configured: bool, given: str | None, where: str
) -> tuple[dict[str, Any], str]:
    """Decide the prediction type of a single file and complete its scheduler configuration.

    Args:
        model: The loaded model.
        marked: Whether the file has the tensors `v_pred` and `ztsnr`, which fine-tunes add as markers.
        configured: Whether the scheduler configuration is the model's own, rather than that of its family.
        given: Prediction type given by the user, if any.
        where: The file, for errors.

    Returns:
        The scheduler configuration, and how the prediction type was determined.

    Raises:
        AuditError: The file and its configuration contradict each other, or the type cannot be determined.
    """
    config = dict(model.scheduler_config)
    own = config.get("prediction_type", "epsilon")
    if configured and given is None and marked.get("v_pred") and own != "v_prediction":
        what = f"the file is marked as v-prediction (v_pred), but its scheduler configuration says {own}"
        raise AuditError(what, where=where, hint=_DO)
    if configured and marked.get("ztsnr") and not config.get("rescale_betas_zero_snr"):
        what = "the file is marked as trained with zero terminal SNR (ztsnr), but its scheduler configuration is not"
        hint = "Set rescale_betas_zero_snr in the scheduler configuration (model.config) to true."
        raise AuditError(what, where=where, hint=hint)
    if marked.get("ztsnr") and not configured:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if given is not None:
        check_prediction(given)
        return config | {"prediction_type": given}, "as given"
    if configured:
        return config | {"prediction_type": own}, "scheduler configuration"
    if marked.get("v_pred"):
        return config | {"prediction_type": "v_prediction"}, "the file's tensor v_pred"
    cosine = noise_cosine(model)
    if VELOCITY < cosine < NOISE or cosine != cosine:
        what = f"cannot tell whether it predicts noise or velocity: the cosine of output and noise is {cosine:.2f}"
        raise AuditError(what, where=where, hint=_DO)
    found = "epsilon" if cosine >= NOISE else "v_prediction"
    return config | {"prediction_type": found}, f"measured: cosine of output and noise {cosine:.2f}"


def check_prediction(given: str) -> None:
    """Raise UsageError if a prediction type is not supported."""
    if given not in PREDICTIONS:
        raise UsageError(f"prediction_type is {given!r}", hint=f"Give one of: {', '.join(PREDICTIONS)}.")


def published_size(unet: Mapping[str, Any], prediction_type: str | None) -> int:
    """Return the latent size that a single file's family was trained at.

    SD 2.x models that predict velocity were trained at 768 pixels, other 1.x and 2.x models at 512, XL at 1024. If the
    prediction type is not known yet (None), the larger size is returned.

    Args:
        unet: Configuration of the UNet.
        prediction_type: The prediction type, if known.
    """
    return 96 if unet["cross_attention_dim"] == 1024 and prediction_type != "epsilon" else int(unet["sample_size"])


@torch.inference_mode()
def noise_cosine(model: Model) -> float:
    """Compute the cosine of the UNet's output and its input at the last timestep, on pure noise with the empty prompt.

    At that timestep the input is nearly the noise itself, so the cosine is about 1 if the UNet predicts noise and about
    0 if it predicts velocity.
    """
    small = replace(model, latent_shape=(model.latent_shape[0], _SIDE, _SIDE))
    noise_1CHW = initial_latents([0], small.latent_shape, model.device)
    last = model.scheduler_config["num_train_timesteps"] - 1
    output_1CHW = small.predict(noise_1CHW, last, small.encode([""]))
    return float(torch.cosine_similarity(output_1CHW.flatten(), noise_1CHW.flatten(), dim=0))
