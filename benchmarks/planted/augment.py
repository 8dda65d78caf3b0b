"""Vary captions from row to row (Somepalli et al., NeurIPS 2023), as baselines for the guard."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Shapes: B captions, K text positions (BOS, words, EOS to the end), W positions after BOS, I inserted tokens.

Augment = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]
INSERTED = 4


def insert_tokens(tokens_BK: Tensor, _duplicated_B: Tensor, eos: int, generator: torch.Generator) -> Tensor:
    """Insert four random tokens at random places of every caption, and truncate captions that get too long.

    Args:
        tokens_BK: The token ids of the captions [B, K].
        _duplicated_B: Unused.
        eos: The id of EOS. Ids from `eos - 1` on (BOS and EOS) are not drawn.
        generator: The random generator.

    Returns:
        The token ids [B, K].
    """
    words_BW = tokens_BK[:, 1:]
    count_B1 = (words_BW != eos).sum(1, keepdim=True)
    place_BW = torch.arange(words_BW.shape[1]).expand_as(words_BW)
    place_BI = torch.rand((len(tokens_BK), INSERTED), generator=generator) * (count_B1 + 1) - 1
    inserted_BI = torch.randint(eos - 1, place_BI.shape, generator=generator)
    order = torch.cat([place_BW, place_BI], 1).argsort(dim=1, stable=True)
    words_BW = torch.cat([words_BW, inserted_BI], 1).gather(1, order)[:, : words_BW.shape[1]]
    words_BW[:, -1] = eos
    return torch.cat([tokens_BK[:, :1], words_BW], 1)


def shuffle_tokens(tokens_BK: Tensor, duplicated_B: Tensor, eos: int, generator: torch.Generator) -> Tensor:
    """Shuffle the tokens of the captions of duplicated rows.

    Args:
        tokens_BK: The token ids of the captions [B, K].
        duplicated_B: Whether the row of each caption is duplicated [B].
        eos: The id of EOS.
        generator: The random generator.

    Returns:
        The token ids [B, K].
    """
    words_BW = tokens_BK[:, 1:]
    place_BW = torch.rand(words_BW.shape, generator=generator).masked_fill(words_BW == eos, 1.0)
    shuffled_BW = words_BW.gather(1, place_BW.argsort(dim=1, stable=True))
    return torch.cat([tokens_BK[:, :1], torch.where(duplicated_B[:, None], shuffled_BW, words_BW)], 1)
