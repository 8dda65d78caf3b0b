"""DDIM with classifier-free guidance in plain loops, as a reference for what mitigation does between the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Guide = Callable[[int, Tensor, Tensor], Tensor]  # (step, eps(null), eps(c)) -> the guided eps
Clean = Callable[[int, Tensor], Tensor]  # (step, x0) -> x0
After = Callable[[int, Tensor, Tensor], Tensor]  # (step, x before, x after) -> x after


def encoded(pipe: Any, text: str, replace: Callable[[Tensor], Tensor] = lambda ids: ids) -> Tensor:
    """Encode one text, after changing its ids, [K]: hidden states [1, K, D]."""
    ids = pipe.tokenizer(text, padding="max_length", max_length=pipe.tokenizer.model_max_length).input_ids
    with torch.no_grad():
        hidden: Tensor = pipe.text_encoder(replace(torch.tensor(ids))[None])[0]
    return hidden


@torch.no_grad()
def sampled(
    pipe: Any,
    prompt: Tensor,
    noise: Tensor,
    steps: int,
    guidance: float,
    guide: Guide | None = None,
    clean: Clean = lambda _step, x0: x0,
    after: After = lambda _step, _before, x: x,
) -> Tensor:
    """Sample one image: its latents [1, C, H, W].

    Args:
        pipe: Holds the networks and the noise schedule, which predicts epsilon.
        prompt: Hidden states of the prompt, [1, K, D].
        noise: The initial latents, [1, C, H, W].
        steps: Number of steps.
        guidance: The guidance scale.
        guide: Combines the two predictions.
        clean: Changes the predicted clean latents.
        after: Changes the latents after a step.
    """
    null, x = encoded(pipe, ""), noise
    kept = torch.cat([pipe.scheduler.alphas_cumprod[:1], pipe.scheduler.alphas_cumprod]).double()
    for step in range(steps):
        t = (steps - 1 - step) * (1000 // steps) + 1
        eps_null, eps_c = (pipe.unet(x, t, encoder_hidden_states=hidden).sample for hidden in (null, prompt))
        eps = eps_null + guidance * (eps_c - eps_null) if guide is None else guide(step, eps_null, eps_c)
        now, then = kept[t + 1], kept[max(t - 1000 // steps, -1) + 1]
        x0 = clean(step, (x - (1 - now).sqrt() * eps) / now.sqrt())
        eps = (x - now.sqrt() * x0) / (1 - now).sqrt()
        x = after(step, x, then.sqrt() * x0 + (1 - then).sqrt() * eps)
    return x
