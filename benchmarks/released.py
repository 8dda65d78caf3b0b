"""Rebuild what the code released with the paper does to score a caption (arXiv 2403.11052).

The released code makes an image: 50 guided steps, one caption at a time. Every cross-attention layer computes its
probabilities in full, and each step copies them to the host. The score then needs one vector of one step: the attention
of the 4th layer in the first step, averaged over heads and image queries. The rebuild keeps the conditional half only,
and lets self-attention run as diffusers runs it, so that it is rather too fast than too slow.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from audit.detectors.entropy import entropy
from audit.models.noise import initial_latents
from audit.models.sd import StableDiffusion

# Shapes: B rows of the UNet's batch, H heads, Q image queries, K text positions, D width.

LAYER = 3  # of the score, in order of execution


class RecordingProcessor:
    """Computes cross-attention explicitly, and copies the probabilities of the conditional half to the host.

    Args:
        maps: Receives [H, Q, K] of each step.
    """

    def __init__(self, maps: list[Tensor]) -> None:
        self._maps = maps

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend as diffusers' `AttnProcessor` does, without a mask or a norm."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(to(encoder_hidden_states)) for to in (attn.to_k, attn.to_v))
        probabilities = attn.get_attention_scores(query, key)
        self._maps.append(probabilities[len(probabilities) // 2 :].to("cpu", copy=True))
        output: Tensor = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        for module in attn.to_out:
            output = module(output)
        return output


def score(
    model: StableDiffusion, caption: str, seed: int = 0, steps: int = 50, guidance_scale: float = 7.5
) -> tuple[float, Any]:
    """Generate an image as the released code does, and compute `entropy_single_step` from the recorded maps.

    Args:
        model: The model to run.
        caption: The caption.
        seed: Seed of the initial noise.
        steps: Number of denoising steps.
        guidance_scale: Classifier-free guidance scale, above 1.

    Returns:
        (score, image as a PIL image).
    """
    maps: list[list[Tensor]] = [[] for _ in model.layers]
    before = [layer.processor for layer in model.layers]
    for layer, kept in zip(model.layers, maps, strict=True):
        layer.set_processor(RecordingProcessor(kept))
    try:
        noise = initial_latents([seed], model.latent_shape, model.device).to(model.dtype)
        made = model.pipeline()(caption, num_inference_steps=steps, guidance_scale=guidance_scale, latents=noise)
    finally:
        for layer, processor in zip(model.layers, before, strict=True):
            layer.set_processor(processor)
    attn_K = maps[LAYER][0].float().mean((0, 1))
    return float(entropy(attn_K)), made.images[0]
