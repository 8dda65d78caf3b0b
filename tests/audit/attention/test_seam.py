"""The seam sees every cross-attention, whatever the processor and however the model is compiled, or raises."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

from audit.attention.probe import AttentionProbe, LayersSeen
from audit.attention.seam import Seam, Slot
from audit.errors import AuditError
from tests.support.small_unet import shallow_unet

BATCH = 2
SHAPE = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """Four cross-attention layers."""
    torch.manual_seed(0)
    small = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, cross_attention_dim=24, attention_head_dim=4, norm_num_groups=8, **SHAPE
    )
    return small.eval().requires_grad_(False)


@pytest.fixture
def transformer() -> Transformer2DModel:
    """Two cross-attention layers, and little else to compile."""
    torch.manual_seed(0)
    small = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=1,
        only_cross_attention=True,
        cross_attention_dim=24,
        norm_num_groups=4,
    )
    return small.eval().requires_grad_(False)


Network = UNet2DConditionModel | Transformer2DModel


def cross_attention(network: Network) -> list[Attention]:
    return [each for each in network.modules() if isinstance(each, Attention) and each.is_cross_attention]


def run(network: Network, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, hidden = (torch.randn(BATCH, *shape, generator=generator) for shape in ((4, 8, 8), (7, 24)))
    (output,) = network(sample, timestep=5, encoder_hidden_states=hidden, return_dict=False, **more)
    found: Tensor = output
    return found


def probed(network: Network, stop: bool = False, **more: Any) -> Tensor:
    with AttentionProbe(cross_attention(network), stop=stop) as probe:
        run(network, **more)
        return probe.take()


class Doubled(Seam):
    """Multiplies the logits of the first text position of the last row by two."""

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        factor = torch.ones(BATCH, 1, key_BHKD.shape[2], 1)
        factor[-1, :, 0] = 2
        return key_BHKD * factor


def doubled(network: Network) -> Tensor:
    with Doubled(cross_attention(network)) as seam:
        output = run(network)
        seam.check()
    return output


class XFormers:
    """xFormers' attention, written out: it is not a function of torch, and its tensors are [B x H, positions, D]."""

    ops = SimpleNamespace()

    @staticmethod
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, op: Any, scale: float) -> Tensor:
        logits = scale * query @ key.transpose(-1, -2) + (0 if attn_bias is None else attn_bias)
        return logits.softmax(-1) @ value


def processors() -> dict[str, Any]:
    made = {"classic": AttnProcessor(), "sliced by 1": SlicedAttnProcessor(1), "sliced by 3": SlicedAttnProcessor(3)}
    return made | {"xformers": attention_processor.XFormersAttnProcessor()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*processors(), "fused"])
def test_processors_that_attend_otherwise_show_and_change_the_same(
    unet: UNet2DConditionModel, name: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(XFormers.ops, "memory_efficient_attention", XFormers.attention, raising=False)
    monkeypatch.setattr(attention_processor, "xformers", XFormers)
    more = {"encoder_attention_mask": torch.arange(7) < torch.tensor([[4], [6]])} if masked else {}
    attn_BLK, changed = probed(unet, **more), doubled(unet)
    if masked:
        assert attn_BLK[0, :, 4:].max() == 0
        assert attn_BLK[1, :, 6:].max() == 0
    if name == "fused":
        unet.fuse_qkv_projections()
    else:
        unet.set_attn_processor(processors()[name])
    torch.testing.assert_close(probed(unet, **more), attn_BLK, atol=1e-6, rtol=0)
    torch.testing.assert_close(doubled(unet), changed, atol=1e-5, rtol=0)
    assert not torch.allclose(changed, run(unet), atol=1e-3)


def test_a_layer_that_attends_unseen_or_twice_is_an_error(unet: UNet2DConditionModel) -> None:
    class Passes:
        def __call__(self, _attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    class Twice(AttnProcessor2_0):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = super().__call__(*args, **kwargs) + super().__call__(*args, **kwargs)
            return output

    layers = cross_attention(unet)
    for processor, times in ((Passes(), 0), (Twice(), 2)):
        layers[2].set_processor(processor)
        message = f"(?s)layer 2, with {type(processor).__name__}, attended {times} times: of 4 .*, 1 did not"
        with pytest.raises(AuditError, match=message):
            probed(unet)
    layers[2].set_processor(AttnProcessor2_0())
    probed(unet)


def test_several_watch_a_layer_and_leave_in_any_order(unet: UNet2DConditionModel) -> None:
    layers, classes = cross_attention(unet), [type(layer) for layer in cross_attention(unet)]
    first, second = AttentionProbe(layers), AttentionProbe(layers[:2])
    first.__enter__()
    second.__enter__()
    run(unet)
    attn_BLK = first.take()
    assert torch.equal(second.take(), attn_BLK[:, :2])
    first.__exit__()
    run(unet)
    assert torch.equal(second.take(), attn_BLK[:, :2])
    second.__exit__()
    assert [type(layer) for layer in layers] == classes
    assert not any(name.startswith("_audit") for layer in layers for name in vars(layer))


@pytest.mark.slow
def test_a_graph_that_was_compiled_before_is_seen_and_changed_and_not_ended_early(
    transformer: Transformer2DModel,
) -> None:
    assert len(cross_attention(transformer)) == 2
    with pytest.raises(LayersSeen):
        probed(transformer, stop=True)
    check_compiled(transformer, lambda: transformer.compile(backend="eager", fullgraph=True), stop=True)


@pytest.mark.slow
def test_blocks_that_were_compiled_one_by_one_before_are_seen_and_changed_with_any_processor() -> None:
    unet = shallow_unet(on_the_way="up").eval().requires_grad_(False)
    attn_BLK = check_compiled(unet, lambda: unet.compile_repeated_blocks(backend="eager", fullgraph=True), stop=False)
    unet.set_attn_processor(SlicedAttnProcessor(3))
    torch.testing.assert_close(probed(unet), attn_BLK, atol=1e-6, rtol=0)


def check_compiled(network: Network, compile_in_place: Callable[[], None], stop: bool) -> Tensor:
    """Check that what is seen and changed is the same after compiling, and return what is seen.

    Args:
        network: The network.
        compile_in_place: Compiles it.
        stop: Whether the probe is to end the forward early, which it cannot in a compiled one.
    """
    plain, attn_BLK, changed = run(network), probed(network), doubled(network)
    torch._dynamo.reset()
    compile_in_place()
    torch.testing.assert_close(run(network), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(probed(network, stop), attn_BLK, atol=1e-6, rtol=0)
    torch.testing.assert_close(doubled(network), changed, atol=1e-6, rtol=0)
    torch.testing.assert_close(run(network), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(probed(network, stop), attn_BLK, atol=1e-6, rtol=0)
    return attn_BLK
