"""Where a row stops being finite: a broken checkpoint, or too narrow a dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from audit.attention.probe import AttentionProbe
from audit.models.model import Model
from audit.scoring.batching import Batch, Rows

# Shapes: L layers, K text positions, D text width, C, H and W of the latent.


def first_not_finite(rows: Rows, one: Batch, latents_1CHW: Tensor, timestep: int) -> str | None:
    """What is the first to be NaN or infinite in this forward of a row, or of the empty prompt; None if nothing is."""
    for hidden_1KD, of in ((one.hidden_BKD, ""), (rows.empty_1KD, " of the empty prompt")):
        what = _first(rows.model, latents_1CHW, timestep, hidden_1KD)
        if what:
            return what + of
    return None


@torch.inference_mode()
def _first(model: Model, latents_1CHW: Tensor, timestep: int, hidden_1KD: Tensor) -> str | None:
    with AttentionProbe(model.layers) as probe:
        output_1CHW = model.predict(latents_1CHW, timestep, hidden_1KD)
        (attn_LK,) = probe.take()
    checks = [("hidden states of the text encoder", hidden_1KD)]
    checks += [(f"cross-attention layer {layer}", attn_K) for layer, attn_K in enumerate(attn_LK)]
    checks.append(("output of the UNet", output_1CHW))
    return next((name for name, values in checks if not values.isfinite().all()), None)
