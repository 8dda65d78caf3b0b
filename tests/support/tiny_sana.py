"""Make folders of SANA with random weights, a few megabytes in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from audit.models.sana import INSTRUCTION

GEMMA_WIDTH = 32
SIZE = 32  # pixels, the least that the pipeline takes


def tiny_sana(folder: Path, tokenizer: GemmaTokenizer | None = None, **transformer: Any) -> Path:
    """Save a folder and return it.

    Args:
        folder: Where to save it.
        tokenizer: The tokenizer, if not that of `tiny_gemma_tokenizer`.
        transformer: Entries of the transformer's configuration.
    """
    torch.manual_seed(0)
    tokenizer = tokenizer or tiny_gemma_tokenizer()
    network = SanaTransformer2DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": GEMMA_WIDTH,
            "mlp_ratio": 1.0,
            "sample_size": 8,
        }
        | transformer
    )
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=GEMMA_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        attn_logit_softcapping=None,  # it would take a third of the time of these tests
    )
    pipeline = SanaPipeline(
        transformer=network,
        vae=_autoencoder(),
        text_encoder=Gemma2Model(config).eval(),
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True),
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_gemma_tokenizer(**changes: Any) -> GemmaTokenizer:
    """Make a tokenizer of Gemma that has the words of the instruction, a few more, and all letters.

    Args:
        changes: Arguments of the tokenizer.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted({*INSTRUCTION.replace(" ", "▁"), *"abcdefghijklmnopqrstuvwxyz0123456789"})
    vocabulary = {token: number for number, token in enumerate((*special, *letters))}
    merges = []
    for word in (*INSTRUCTION.split(), "red", "dog", "on", "table", "zebra"):
        for end in range(len(word)):
            pair = f"▁{word[:end]}", word[end]
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                merges.append(pair)
    return GemmaTokenizer(**{"vocab": vocabulary, "merges": merges, "add_bos_token": True} | changes)


def _autoencoder() -> AutoencoderDC:
    """Make an autoencoder of four pixels per latent pixel."""
    blocks = ("ResBlock",) * 3
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        upsample_block_type="interpolate",
        scaling_factor=0.41,
    )
