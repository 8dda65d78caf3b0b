"""Make folders of PixArt with random weights, a few megabytes in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from tests.support.tiny_mmdit import T5_WIDTH, tiny_t5, tiny_t5_tokenizer, tiny_vae


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
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "cross_attention_dim": 16,
            "caption_channels": T5_WIDTH,
        }
        | transformer
    )
    made = pipeline(
        transformer=network,
        vae=tiny_vae(),
        text_encoder=tiny_t5(),
        tokenizer=tiny_t5_tokenizer(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    made.save_pretrained(folder)
    return folder
