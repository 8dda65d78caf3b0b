from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention

import audit
from audit.attention.probe import AttentionProbe, LayersSeen, attention, cross_attention_layers
from tests.support.explicit import Explicit


def inputs(model: audit.Model, captions: list[str]) -> dict[str, Any]:
    noise = torch.randn((len(captions), *model.latent_shape), generator=torch.Generator().manual_seed(0))
    return {"sample": noise, "timestep": 621, "encoder_hidden_states": model.encode(captions)[0]}


def test_layers_come_in_order_of_execution(tiny: audit.Model) -> None:
    names = {module: name for name, module in tiny.unet.named_modules()}
    executed: list[str] = []
    handles = [
        module.register_forward_hook(lambda module, *_: executed.append(names[module]))
        for module in tiny.unet.modules()
        if isinstance(module, Attention) and module.is_cross_attention
    ]
    tiny.unet(**inputs(tiny, ["a dog"]))
    for handle in handles:
        handle.remove()
    assert [names[layer] for layer in tiny.layers] == executed
    assert len(executed) == 16
    assert executed[3].startswith("down_blocks.1.attentions.1")
    assert executed[6].startswith("mid_block")


def test_self_attention_named_attn2_is_not_probed(sd1: audit.Model) -> None:
    block = sd1.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    attn1, attn2 = block.attn1, block.attn2
    block.attn1, block.attn2 = attn2, attn1
    try:
        assert attn1 not in cross_attention_layers(sd1.unet)
        assert attn2 in cross_attention_layers(sd1.unet)
    finally:
        block.attn1, block.attn2 = attn1, attn2


def test_it_is_the_plain_softmax_in_float64(sd1: audit.Model, exact: StableDiffusionPipeline) -> None:
    given = inputs(sd1, ["a dog", "a serene beach at sunrise"])
    plain = Explicit()
    before = exact.unet.attn_processors
    mine = {name: plain if "attn2" in name else processor for name, processor in before.items()}
    exact.unet.set_attn_processor(mine)
    hidden = exact.encode_prompt(["a dog", "a serene beach at sunrise"], "cpu", 1, False)[0]
    with torch.inference_mode():
        output = exact.unet(given["sample"].double(), 621, encoder_hidden_states=hidden).sample
        with AttentionProbe(sd1.layers) as probe:
            ours = sd1.unet(**given).sample
    exact.unet.set_attn_processor(before)
    torch.testing.assert_close(probe.take().double(), torch.stack(plain.means, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.double(), output, atol=2e-5, rtol=0)


def test_the_layers_output_is_bit_for_bit_what_it_is_without_a_probe(tiny: audit.Model) -> None:
    given = inputs(tiny, ["a dog", "a cat in the rain"])
    with torch.inference_mode():
        without = tiny.unet(**given).sample
        with AttentionProbe(tiny.layers) as probe:
            with_probe = tiny.unet(**given).sample
    attn_BLK = probe.take()
    assert torch.equal(without, with_probe)
    assert attn_BLK.shape == (2, 16, 77)
    assert attn_BLK.dtype == torch.float32
    torch.testing.assert_close(attn_BLK.sum(-1), torch.ones(2, 16), atol=1e-5, rtol=0)


def test_only_the_rows_asked_for_are_read(sd1: audit.Model) -> None:
    given = inputs(sd1, ["", "a dog"])
    with torch.inference_mode(), AttentionProbe(sd1.layers) as probe:
        sd1.unet(**given)
        both = probe.take()
    with torch.inference_mode(), AttentionProbe(sd1.layers, rows=slice(-1, None)) as probe:
        sd1.unet(**given)
        conditional = probe.take()
    assert torch.equal(conditional, both[1:])


def test_it_can_end_the_forward_and_leaves_nothing_behind(sd1: audit.Model) -> None:
    ran: list[Attention] = []
    handle = sd1.layers[4].register_forward_hook(lambda module, *_: ran.append(module))
    with torch.inference_mode(), AttentionProbe(sd1.layers[:4], stop=True) as probe:
        with pytest.raises(LayersSeen):
            sd1.unet(**inputs(sd1, ["a dog"]))
        assert probe.take().shape == (1, 4, 77)
    handle.remove()
    assert not ran
    assert not any(module._forward_hooks for module in sd1.unet.modules())


def test_half_precision_is_averaged_in_float32() -> None:
    query, key = torch.randn(1, 8, 4096, 16), torch.randn(1, 8, 77, 16)
    mean = attention(query.bfloat16(), key.bfloat16(), 0.25).mean((1, 2))
    assert mean.dtype == torch.float32
    assert mean.sum().item() == pytest.approx(1, abs=1e-5)
