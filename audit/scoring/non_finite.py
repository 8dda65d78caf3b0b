"""Locate where values stop being finite: in a broken checkpoint, or because the dtype is too narrow."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.models.conditioning import Conditioning
from audit.models.model import Model
from audit.scoring.batching import Batch, Rows

# Shapes: L layers, K text positions, C, H and W of the latent.


def first_not_finite(rows: Rows, one: Batch, latents_1CHW: Tensor, timestep: float) -> str | None:
    """Name the first part of a forward that yields NaN or infinity, for a row and then for the empty prompt.

    Args:
        rows: The rows that the batch belongs to.
        one: A batch of one row.
        latents_1CHW: Input of the denoiser.
        timestep: Timestep of the forward.

    Returns:
        The name of the part; None if everything is finite.
    """
    for conditioning, of in ((one.conditioning, ""), (rows.null, " of the empty prompt")):
        what = _first(rows.model, latents_1CHW, timestep, conditioning)
        if what:
            return what + of
    return None


@torch.inference_mode()
def _first(model: Model, latents_1CHW: Tensor, timestep: float, conditioning: Conditioning) -> str | None:
    with model.probe(conditioning) as probe:
        output_1CHW = model.predict(latents_1CHW, timestep, conditioning)
        attn_LK = probe.take()[0] if model.layers else ()
    if not conditioning.isfinite():
        return "hidden states of the text encoder"
    checks = [(f"cross-attention layer {layer}", attn_K) for layer, attn_K in enumerate(attn_LK)]
    checks.append((f"output of the {model.DENOISER}", output_1CHW))
    return next((name for name, values in checks if not values.isfinite().all()), None)
