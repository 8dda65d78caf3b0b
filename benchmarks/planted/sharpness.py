"""Measure the sharpness of Jeon et al. (ICML 2025), a baseline to compare the detectors with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from audit.models.conditioning import Conditioning
from audit.models.model import Model
from audit.scoring.batching import Rows

# Shapes: B rows; C, H and W of the latent.


def sharpness(model: Model, captions: Sequence[str], seed: int, batch_size: int) -> list[float]:
    """Compute `||J d||` for each caption, with `d = eps(c) - eps(∅)` at t = T and `J` its Jacobian in the latents.

    The product `J d` is a forward-mode derivative (torch.func.jvp). That costs two forwards with caption and two
    without for each caption, half of them with derivatives. Attention runs in its plain form, because the fused one
    has no forward-mode derivative. As in `audit.screen`, T is the first timestep at which the predicted noise depends
    on the caption.

    Args:
        model: The model.
        captions: The captions to measure.
        seed: Seed of the initial noise.
        batch_size: Captions per forward; the result does not depend on it.

    Returns:
        The sharpness of each caption. A larger value is more suspicious.
    """
    schedule = model.screen_schedule()
    position = schedule.first_informative
    rows = Rows(model, captions, [seed], batch_size)

    def work(at: slice) -> list[float]:
        batch = rows.batch(at)
        both = [_cloned(each) for each in (batch.conditioning, rows.null.expand(len(batch.conditioning)))]

        def difference(latents_BCHW: Tensor) -> Tensor:
            outputs = [model.predict(latents_BCHW, schedule.timesteps[position], each) for each in both]
            return schedule.response(outputs[0], outputs[1], position)

        noise_BCHW = rows.noise_SCHW[batch.seed_B]
        product_BCHW: Tensor = torch.func.jvp(difference, (noise_BCHW,), (difference(noise_BCHW),))[1]
        norm_B = product_BCHW.double().flatten(1).norm(dim=1)
        found: list[float] = norm_B.masked_fill(batch.same_as_empty_B, 0).tolist()
        return found

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return [value for part in rows.each("sharpness", work) for value in part]


def _cloned(conditioning: Conditioning) -> Conditioning:
    """Copy the tensors, which were made in inference mode, so that derivatives can be taken."""
    return Conditioning({name: tensor.clone() for name, tensor in conditioning.tensors.items()})
