"""Write checkpoints in the original layout of Stable Diffusion from diffusers folders.

The rules for names are written independently of those in `audit`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def original_name(name: str, layers: int = 2, plain: Collection[int] = (0,)) -> str:
    """Return the name of a UNet tensor in an original Stable Diffusion checkpoint.

    Args:
        name: The name in diffusers.
        layers: Layers per block.
        plain: The up blocks without attention.
    """
    size = layers + 1
    rules = [
        (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"conv_in", lambda m: "input_blocks.0.0"),
        (r"conv_norm_out", lambda m: "out.0"),
        (r"conv_out", lambda m: "out.2"),
        (r"add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{size * int(m[1]) + int(m[2]) + 1}.0"),
        (r"down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{size * int(m[1]) + int(m[2]) + 1}.1"),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{size * int(m[1]) + size}.0.op"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{size * int(m[1]) + int(m[2])}.0"),
        (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{size * int(m[1]) + int(m[2])}.1"),
        (
            r"up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"output_blocks.{size * int(m[1]) + layers}.{1 if int(m[1]) in plain else 2}",
        ),
    ]
    for pattern, replacement in rules:
        if re.match(pattern, name):
            name = re.sub(pattern, replacement, name, count=1)
            break
    if "transformer_blocks" not in name:
        for new, old in {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
            "time_emb_proj": "emb_layers.1",
            "conv_shortcut": "skip_connection",
        }.items():
            name = name.replace(f".{new}.", f".{old}.")
    return f"model.diffusion_model.{name}"


def original_vae_name(name: str) -> str:
    """Return the name of a VAE tensor in an original Stable Diffusion checkpoint."""
    for pattern, replacement in (
        (r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{1 - int(m[1])}.block"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.to_out\.0", r"mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.group_norm", r"mid.attn_1.norm"),
        (r"conv_shortcut", r"nin_shortcut"),
        (r"conv_norm_out", r"norm_out"),
    ):
        name = re.sub(pattern, replacement, name)
    return f"first_stage_model.{name}"


def original_open_clip_name(name: str, prefix: str = "cond_stage_model") -> str:
    """Return the name of a text encoder tensor in an original Stable Diffusion 2 checkpoint."""
    for new, old in (
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.", ""),
        ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn", "attn"),
        ("text_projection.weight", "text_projection"),
    ):
        name = name.replace(new, old)
    return f"{prefix}.model.{name}"


def original_open_clip(text: dict[str, Tensor], prefix: str = "cond_stage_model") -> dict[str, Tensor]:
    """Convert a text encoder to the layout of open_clip, which has queries, keys and values in one tensor."""
    found = {}
    for name, tensor in text.items():
        if ".q_proj." in name:
            joined = torch.cat([tensor, *(text[name.replace("q_proj", f"{each}_proj")] for each in "kv")])
            kind = name.rpartition(".")[2]
            found[original_open_clip_name(name, prefix).replace(f"q_proj.{kind}", f"in_proj_{kind}")] = joined
        elif ".k_proj." not in name and ".v_proj." not in name:
            turned = tensor.T.contiguous() if name == "text_projection.weight" else tensor
            found[original_open_clip_name(name, prefix)] = turned
    return found


def original_tensors(source: Path, open_clip: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a diffusers folder under their names in a single file of the original layout."""
    unet = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    config = json.loads((source / "unet/config.json").read_text())
    plain = [number for number, kind in enumerate(config["up_block_types"]) if kind == "UpBlock2D"]
    vae = load_file(source / "vae/diffusion_pytorch_model.safetensors")
    text = load_file(source / "text_encoder/model.safetensors")
    tensors = {original_name(name, config["layers_per_block"], plain): tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        linear = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
        tensors[original_vae_name(name)] = tensor[:, :, None, None].contiguous() if linear else tensor
    if (source / "text_encoder_2").is_dir():
        second = load_file(source / "text_encoder_2/model.safetensors")
        text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
        first = {f"conditioner.embedders.0.transformer.text_model.{name}": each for name, each in text.items()}
        return tensors | first | original_open_clip(second, "conditioner.embedders.1")
    if open_clip:
        return tensors | original_open_clip(text)
    return tensors | {f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()}


def single_file(source: Path, folder: Path, open_clip: bool = False, **more: Tensor) -> tuple[Path, Path]:
    """Write a diffusers folder as a single file of the original layout, and its configuration files into a folder.

    Args:
        source: The diffusers folder.
        folder: Where to write.
        open_clip: Whether to write the text encoder in the layout of open_clip, as in SD 2.x.
        **more: Further tensors of the single file.

    Returns:
        The single file, and the folder of configuration files.
    """
    file = folder / "one.safetensors"
    save_file(original_tensors(source, open_clip) | more, file)
    config = folder / "config"
    shutil.copytree(source, config, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    return file, config
