"""Make folders of Stable Diffusion 3 and FLUX with random weights, a few megabytes in size."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
T5_WIDTH = 40
VAE = {"scaling_factor": 1.5, "shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False}


def tiny_sd3(folder: Path, tokenizer: Path, t5: bool = True, **transformer: Any) -> Path:
    """Save a folder of Stable Diffusion 3 and return it.

    Args:
        folder: Where to save it.
        tokenizer: Folder of the tokenizer to use for both CLIP encoders.
        t5: Whether it has T5.
        transformer: Entries of the transformer's configuration.
    """
    torch.manual_seed(0)
    words, config = _clip(tokenizer)
    network = SD3Transformer2DModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": T5_WIDTH,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 16,
        }
        | transformer
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(**VAE),
        text_encoder=CLIPTextModelWithProjection(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        text_encoder_3=tiny_t5() if t5 else None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=tiny_t5_tokenizer() if t5 else None,
    )
    return _saved(pipeline, folder, tokenizer, ("tokenizer", "tokenizer_2"))


def tiny_flux(folder: Path, tokenizer: Path, **changes: Any) -> Path:
    """Save a folder of FLUX and return it: dev by default, schnell with `guidance_embeds=False`.

    Args:
        folder: Where to save it.
        tokenizer: Folder of CLIP's tokenizer.
        changes: Entries of the transformer's configuration.
    """
    torch.manual_seed(0)
    words, config = _clip(tokenizer)
    network = FluxTransformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": T5_WIDTH,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "guidance_embeds": True,
        }
        | changes
    )
    dev = network.config["guidance_embeds"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)
    pipeline = FluxPipeline(
        transformer=network,
        scheduler=scheduler,
        vae=tiny_vae(**VAE),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=tiny_t5(),
        tokenizer=words,
        tokenizer_2=tiny_t5_tokenizer(),
    )
    return _saved(pipeline, folder, tokenizer, ("tokenizer",))


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Make a tokenizer of T5 that has a few words and all letters."""
    pieces = ["▁", "▁a", "▁red", "▁dog", "▁on", "▁table", *"abcdefghijklmnopqrstuvwxyz0123456789,.'-"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    return T5Tokenizer(vocab=[*special, *((piece, -1.0) for piece in pieces)], extra_ids=0)


def _clip(tokenizer: Path) -> tuple[CLIPTokenizer, CLIPTextConfig]:
    words = CLIPTokenizer.from_pretrained(tokenizer)
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id}
    return words, CLIPTextConfig(vocab_size=len(words), projection_dim=8, hidden_act="gelu", **CLIP, **ends)


def tiny_t5() -> T5EncoderModel:
    """Make a text encoder for `tiny_t5_tokenizer`."""
    return T5EncoderModel(T5Config(d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=64)).eval()


def tiny_vae(**config: Any) -> AutoencoderKL:
    """Make an autoencoder, with these entries in its configuration."""
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(**sizes | blocks | config)


def _saved(pipeline: Any, folder: Path, tokenizer: Path, names: tuple[str, ...]) -> Path:
    pipeline.save_pretrained(folder)
    for name in names:  # as they are, whatever the version of transformers writes
        shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)
    return folder
