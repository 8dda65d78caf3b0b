"""Where a forward stops being finite: a broken checkpoint, or too narrow a dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attention import AttentionProbe
from audit.model import Model

# Shapes: B rows, L layers, K text positions, D text width, C, H and W of the latent.


@torch.inference_mode()
def first_not_finite(model: Model, latents_BCHW: Tensor, timestep: int, hidden_BKD: Tensor) -> list[str | None]:
    """For each row, what is the first in this forward to be NaN or infinite; None if nothing is. Runs it again."""
    with AttentionProbe(model.layers) as probe:
        output_BCHW = model.unet(latents_BCHW, timestep, encoder_hidden_states=hidden_BKD).sample
        attn_BLK = probe.take()
    checks = [("hidden states of the text encoder", hidden_BKD.isfinite().flatten(1).all(1))]
    finite_BL = attn_BLK.isfinite().all(2)
    checks += [(f"cross-attention layer {layer}", finite_B) for layer, finite_B in enumerate(finite_BL.T)]
    checks.append(("output of the UNet", output_BCHW.isfinite().flatten(1).all(1)))
    return [next((name for name, finite_B in checks if not finite_B[row]), None) for row in range(len(hidden_BKD))]
