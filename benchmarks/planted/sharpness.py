"""Measure the sharpness of Jeon et al. (ICML 2025), a baseline to compare the detectors with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from audit.models.model import Model
from audit.models.sampler import ddim, first_informative, response
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
    scheduler = ddim(model.scheduler_config)
    timestep = int(scheduler.timesteps[first_informative(scheduler)])
    rows = Rows(model, captions, [seed], batch_size)

    def work(at: slice) -> list[float]:
        batch = rows.batch(at)
        empty_BKD, hidden_BKD = rows.empty_1KD.expand_as(batch.hidden_BKD).clone(), batch.hidden_BKD.clone()

        def difference(latents_BCHW: Tensor) -> Tensor:
            outputs = [model.predict(latents_BCHW, timestep, hidden) for hidden in (hidden_BKD, empty_BKD)]
            return response(scheduler, outputs[0], outputs[1], timestep)

        noise_BCHW = rows.noise_SCHW[batch.seed_B]
        product_BCHW: Tensor = torch.func.jvp(difference, (noise_BCHW,), (difference(noise_BCHW),))[1]
        norm_B = product_BCHW.double().flatten(1).norm(dim=1)
        found: list[float] = norm_B.masked_fill(batch.same_as_empty_B, 0).tolist()
        return found

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return [value for part in rows.each("sharpness", work) for value in part]
