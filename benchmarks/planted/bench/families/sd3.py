"""Stable Diffusion 3 at toy size: a transformer with joint attention (MMDiT), two CLIP encoders, flow matching."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.planted.bench.families.clip_pair import clip_pair, clip_states
from benchmarks.planted.bench.families.family import Family, Texts
from benchmarks.planted.text import WIDTH, tokenize

# Shapes: B rows of a batch, K text positions, S image and text positions; C, H and W of the latent.

HEADS, HEAD_WIDTH, LAYERS = 4, 32, 4
T5_LENGTH = 256  # the pipeline gives as many zeros in place of the absent T5


class StableDiffusion3(Family):
    """A transformer whose 16 image positions and all text positions attend to each other; there is no T5."""

    def __init__(self, texts: Texts) -> None:
        self.tokenizer, self.encoders = clip_pair(texts)
        self.network = transformer()
        hidden_TKD, pooled = clip_states(self.encoders, tokenize(self.tokenizer, texts.trained))
        self._hidden_TKD = F.pad(hidden_TKD, (0, 0, 0, 1))  # one position of zeros, see Counted
        self._pooled_TP = torch.cat(pooled, dim=-1)

    def predict(self, noisy_BCHW: Tensor, time_B: Tensor, text_B: Tensor) -> Tensor:
        """Run the transformer (see `Family`)."""
        with Counted(T5_LENGTH):
            predicted_BCHW: Tensor = self.network(
                noisy_BCHW, self._hidden_TKD[text_B], self._pooled_TP[text_B], timestep=time_B
            ).sample
        return predicted_BCHW

    def losses(self, latents_BCHW: Tensor, text_B: Tensor, generator: Generator) -> Tensor:
        """Return the losses of flow matching (arXiv 2209.03003) from x = (1 - s) x_0 + s eps to eps - x_0, s uniform.

        The network is given 1000 s as the time (see `Family`).
        """
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(latents_BCHW.device)
        level_B = torch.rand(len(latents_BCHW), generator=generator).to(latents_BCHW.device)
        noisy_BCHW = torch.lerp(latents_BCHW, noise_BCHW, level_B.view(-1, 1, 1, 1))
        velocity_BCHW = noise_BCHW - latents_BCHW
        return (self.predict(noisy_BCHW, 1000 * level_B, text_B) - velocity_BCHW).square().mean((1, 2, 3))

    def save(self, folder: Path, vae: AutoencoderKL) -> None:
        """Save a StableDiffusion3Pipeline without T5 (see `Family`)."""
        vae.register_to_config(shift_factor=0.0)
        StableDiffusion3Pipeline(
            vae=vae,
            text_encoder=self.encoders[0],
            text_encoder_2=self.encoders[1],
            text_encoder_3=None,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer,
            tokenizer_3=None,
            transformer=self.network.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        ).save_pretrained(folder, safe_serialization=True)


class Counted(TorchFunctionMode):
    """Inside the `with` block, attention counts the last position as often as given.

    The zeros in place of T5 have no positions, so they are equal to each other in every layer, and one of them with
    the logarithm of their number added to its logits stands for all: a seventh of the work.

    Args:
        times: How often.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self._logit = math.log(times)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Add to the logits of the last position in attention; call anything else as it is."""
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            bias_S = query.new_zeros(key.shape[-2])
            bias_S[-1] = self._logit
            given["attn_mask"] = bias_S.expand(1, 1, query.shape[-2], -1)
        return func(*args, **given)


def transformer() -> SD3Transformer2DModel:
    """Return an untrained transformer with 2.3 million parameters."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=4,
    )
