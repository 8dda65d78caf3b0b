from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

import audit
from audit.errors import AuditError, UsageError
from tests.support.explicit import projected
from tests.support.small_unet import shallow_unet

PROMPT = "a serene beach at sunrise"


class Loop:
    """Attention with explicit loops over heads and positions; changes the conditional row of a guided call."""

    def __init__(self, changes: bool, alpha: float, tau: float) -> None:
        self.changes, self.alpha, self.tau = changes, alpha, tau
        self.attenuated = 0

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = projected(attn, hidden_states, text)
        logits = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
        if encoder_hidden_states is not None and self.changes:
            for head in range(logits.shape[1]):
                highest = [float(logits[-1, head, :, k].max()) for k in range(logits.shape[-1])]
                mean, spread = np.mean(highest[1:]), np.std(highest[1:])
                for k in range(1, len(highest)):
                    if (highest[k] - mean) / spread > self.tau:
                        logits[-1, head, :, k] *= self.alpha
                        self.attenuated += 1
        return attn.to_out[1](attn.to_out[0]((logits.softmax(-1) @ value).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize(("alpha", "tau"), [(0.3, 2.0), (-1.0, 1.0)])
def test_it_is_the_definition_in_float64(pipe: Any, latents: Any, alpha: float, tau: float, guidance: float) -> None:
    with audit.mitigated(pipe, audit.Attenuate(alpha, tau)):
        ours = latents(pipe, PROMPT, guidance_scale=guidance)
    loops = {
        name: Loop(name.startswith(("down_blocks", "mid_block")), alpha, tau) for name in pipe.unet.attn_processors
    }
    pipe.unet.set_attn_processor(dict(loops))
    try:
        np.testing.assert_allclose(ours, latents(pipe, PROMPT, guidance_scale=guidance), atol=1e-9, rtol=0)
    finally:
        pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert sum(loop.attenuated for loop in loops.values()) > 0


@pytest.mark.slow
def test_a_compiled_unet_is_attenuated(pipe: Any, latents: Any) -> None:
    pipe.unet = shallow_unet(pipe.unet.config.cross_attention_dim, "down").eval().double()
    with audit.mitigated(pipe, audit.Attenuate(tau=1.0)):
        right = latents(pipe, PROMPT)
    torch._dynamo.reset()
    audit.mitigate_(pipe, audit.Attenuate(tau=1.0))
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    np.testing.assert_allclose(latents(pipe, PROMPT), right, atol=1e-9, rtol=0)


def test_settings_must_be_finite() -> None:
    with pytest.raises(UsageError, match="tau is nan"):
        audit.Attenuate(tau=float("nan"))


def test_a_unet_without_these_layers_is_refused(pipe: Any) -> None:
    pipe.unet = UNet2DConditionModel(
        sample_size=16,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        attention_head_dim=4,
        norm_num_groups=8,
        layers_per_block=1,
    )
    with pytest.raises(AuditError, match="no cross-attention in its down blocks"):
        audit.mitigate_(pipe, audit.Attenuate())
