"""Two CLIP encoders of one vocabulary, as Stable Diffusion XL and 3 have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.planted import contrastive
from benchmarks.planted.bench.families.family import Texts, kept
from benchmarks.planted.text import WIDTH, tokenizer_of

# Shapes: T captions, K text positions, D width of both encoders together, P width of a pooled vector.


def clip_pair(texts: Texts) -> tuple[CLIPTokenizer, list[CLIPTextModelWithProjection]]:
    """Train a tokenizer and, from two seeds, two text encoders of pictures that are not planted; they are frozen."""
    tokenizer = kept(CLIPTokenizer, tokenizer_of, texts)
    return tokenizer, [_encoder(texts, tokenizer, number) for number in range(2)]


def _encoder(texts: Texts, tokenizer: CLIPTokenizer, number: int) -> CLIPTextModelWithProjection:
    saved, seed = texts.checkpoints / f"contrastive-{number}.pt", texts.seed + 1000 * number
    encoder, projection = contrastive.train(texts.pictures_NCHW, texts.captions, tokenizer, saved, seed, texts.steps)
    projected = CLIPTextModelWithProjection(CLIPTextConfig(**encoder.config.to_dict() | {"projection_dim": WIDTH}))
    projected.text_model, projected.text_projection = encoder, projection
    return projected.eval().requires_grad_(False)


@torch.no_grad()
def clip_states(encoders: Sequence[CLIPTextModelWithProjection], tokens_TK: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Compute the hidden states before the last layers, joined [T, K, D], and the pooled vectors [T, P] of each."""
    found = [encoder(tokens_TK, output_hidden_states=True) for encoder in encoders]
    return torch.cat([each.hidden_states[-2] for each in found], dim=-1), [each.text_embeds for each in found]
