"""Make folders of PixArt with random weights, a few megabytes in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from tests.support.tiny_mmdit import T5_WIDTH, tiny_t5_tokenizer


def tiny_pixart(folder: Path, pipeline: type = PixArtSigmaPipeline, **transformer: Any) -> Path:
    """Save a folder and return it.

    Args:
        folder: Where to save it.
        pipeline: Class of the pipeline.
        transformer: Entries of the transformer's configuration.
    """
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "cross_attention_dim": 16,
            "caption_channels": T5_WIDTH,
        }
        | transformer
    )
    encoder = T5EncoderModel(T5Config(d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64))
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    made = pipeline(
        transformer=network,
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tiny_t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    made.save_pretrained(folder)
    return folder
