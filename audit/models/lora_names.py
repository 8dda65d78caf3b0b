"""Find a model's layers by the names that LoRA files give them: those of diffusers, peft, kohya and the original code.

kohya trains Stable Diffusion XL and FLUX in their original code, which numbers blocks differently. A layer there may
stand for several of diffusers' layers: its outputs are theirs, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

Layer = nn.Linear | nn.Conv2d
# Parts of a residual block of the UNet.
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_FLUX = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
}
_DOUBLE = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "img_mod.lin": ["norm1.linear"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
    "txt_mod.lin": ["norm1_context.linear"],
}
_SINGLE = {
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "modulation.lin": ["norm.linear"],
}


def named_layers(components: Mapping[str, nn.Module]) -> dict[str, tuple[str, list[Layer]]]:
    """Return the layers that LoRA can be added to, and their component, by each plain name that files give them.

    Args:
        components: The denoiser and the text encoders, by name.
    """
    found: dict[str, tuple[str, list[Layer]]] = {}
    for component, network in components.items():
        layers = {name: each for name, each in network.named_modules() if isinstance(each, Layer)}
        for original, names in original_names(network, layers).items():
            if all(name in layers for name in names):
                found[plain(f"lora_unet_{original}")] = component, [layers[name] for name in names]
        found |= {plain(f"{component}.{name}"): (component, [layer]) for name, layer in layers.items()}
    return found


def original_names(network: nn.Module, layers: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of a network's layers in its original code, and the layers that each consists of.

    Args:
        network: The network.
        layers: Names of its layers.
    """
    if isinstance(network, UNet2DConditionModel) and isinstance(network.config["layers_per_block"], int):
        return {_original_in_unet(name, network): [name] for name in layers}
    if not isinstance(network, FluxTransformer2DModel):
        return {}
    found = dict(_FLUX)
    for old, new, parts, count in (
        ("double_blocks", "transformer_blocks", _DOUBLE, network.config["num_layers"]),
        ("single_blocks", "single_transformer_blocks", _SINGLE, network.config["num_single_layers"]),
    ):
        for block in range(count):
            for part, names in parts.items():
                found[f"{old}.{block}.{part}"] = [f"{new}.{block}.{name}" for name in names]
    return found


def _original_in_unet(name: str, unet: UNet2DConditionModel) -> str:
    if name in _UNET:
        return _UNET[name]
    layers = unet.config["layers_per_block"]
    block = re.match(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if block is None:
        return name
    side, kind, rest = block[1], block[3], block[5]
    number, layer = int(block[2] or 0), int(block[4])
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (number + 1)}.0.op"
    if kind == "upsamplers":
        attends = hasattr(unet.up_blocks[number], "attentions")
        return f"output_blocks.{(layers + 1) * number + layers}.{2 if attends else 1}.{rest}"
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    part = 0 if kind == "resnets" else 1
    if side == "mid":
        return f"middle_block.{2 * layer + part}.{rest}"
    first = {"down": ("input_blocks", 1), "up": ("output_blocks", 0)}[side]
    return f"{first[0]}.{(layers + 1) * number + layer + first[1]}.{part}.{rest}"


def plain(name: str) -> str:
    """Normalise the spelling of a layer's name: kohya writes no dots, current transformers no `text_model`."""
    name = re.sub(r"^lora_te1?_", "text_encoder.", re.sub(r"^lora_(unet|transformer)_", r"\1.", name))
    name = re.sub(r"^lora_te2_", "text_encoder_2.", name)
    name = name.replace(".processor.", ".").replace("text_model", "").replace(".", "_")
    name = re.sub(r"_to_out$", "_to_out_0", name)
    return re.sub(r"_+", "_", name)
