"""Compute entropies of averaged attention (arXiv 2403.11052, section 3): in nats, float64, with `0 log 0 = 0`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Shapes: B rows, L layers, K text positions; X any leading axes.


def entropy(attn_XK: Tensor) -> Tensor:
    """Compute `H(a) = -sum_k a_k log a_k` over the last axis: [X, K] -> [X], float64."""
    import torch

    return torch.special.entr(attn_XK.double()).sum(-1)


def summary_entropy(attn_BK: Tensor, prompt_tokens_B: Tensor) -> Tensor:
    """Compute `H_S(a)`, the same sum over EOS and the padding after it only: [B, K] -> [B], float64.

    The attention is not renormalised. `prompt_tokens_B` counts BOS and EOS, so the summary tokens are at positions
    `prompt_tokens - 1` and above.
    """
    import torch

    position_K = torch.arange(attn_BK.shape[-1], device=attn_BK.device)
    in_summary_BK = position_K >= (prompt_tokens_B[:, None] - 1)
    return (torch.special.entr(attn_BK.double()) * in_summary_BK).sum(-1)
