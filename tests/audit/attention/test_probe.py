from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

import audit
from audit.attention.probe import AttentionProbe, LayersSeen, MapProbe, Places, attention, cross_attention_layers
from tests.support.explicit import Explicit


def inputs(model: audit.Model, captions: list[str]) -> dict[str, Any]:
    noise = torch.randn((len(captions), *model.latent_shape), generator=torch.Generator().manual_seed(0))
    return {
        "sample": noise,
        "timestep": 621,
        "encoder_hidden_states": model.encode(captions).tensors["encoder_hidden_states"],
    }


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


def test_it_is_the_plain_softmax_in_float64(small: audit.Model, float64: StableDiffusionPipeline) -> None:
    given = inputs(small, ["a dog", "a serene beach at sunrise"])
    plain, before = Explicit(), float64.unet.attn_processors
    float64.unet.set_attn_processor({name: plain if "attn2" in name else before[name] for name in before})
    hidden = float64.encode_prompt(["a dog", "a serene beach at sunrise"], "cpu", 1, False)[0]
    with torch.inference_mode():
        output = float64.unet(given["sample"].double(), 621, encoder_hidden_states=hidden).sample
        with AttentionProbe(small.layers) as probe:
            ours = small.unet(**given).sample
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


class JointLayer(nn.Module):
    """Attends jointly from image and text to image and text, as transformers trained by flow matching do."""

    heads, processor = 2, None

    def forward(self, image_BQD: Tensor, text_BKD: Tensor) -> Tensor:
        both_BHND = torch.cat([image_BQD, text_BKD], dim=1).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return functional.scaled_dot_product_attention(both_BHND, both_BHND, both_BHND)


@pytest.mark.parametrize("count", [9, 600])
def test_joint_attention_is_read_in_the_canonical_layout_and_sums_to_one(count: int) -> None:
    layer, places = JointLayer(), Places(slice(None, count), slice(count, None), joint=True)
    image_BQD, text_BKD = torch.randn(2, count, 8), torch.randn(2, 4, 8)
    order_BK = torch.tensor([[2, 0, 1, 3], [0, 1, 2, 3]])
    probe = AttentionProbe([layer], places=places, order_BK=order_BK)
    end_probe = MapProbe([layer], torch.tensor([2, 3]), places=places)
    with probe, end_probe:
        layer(image_BQD, text_BKD)
        (found_BK,), end_BQ = probe.take().unbind(1), end_probe.take()
    heads_BHND = torch.cat([image_BQD, text_BKD], dim=1).unflatten(2, (2, 4)).transpose(1, 2).double()
    attn_BHNN = (heads_BHND @ heads_BHND.transpose(-1, -2) / 2).softmax(-1)
    to_text_BQK = attn_BHNN[:, :, :count, count:].mean(1)
    text_BK = to_text_BQK.mean(1).gather(1, order_BK)
    expected_BK = torch.cat([(1 - text_BK[:, 1:].sum(1))[:, None], text_BK[:, 1:]], dim=1)
    torch.testing.assert_close(found_BK.double(), expected_BK, atol=1e-6, rtol=0)
    expected_BQ = torch.stack([to_text_BQK[0, :, 2], to_text_BQK[1, :, 3]])
    torch.testing.assert_close(end_BQ.double(), expected_BQ, atol=1e-6, rtol=0)
