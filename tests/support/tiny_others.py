"""Make folders of pipelines that have no family, with random weights, a few megabytes in size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    GlmConfig,
    GlmModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from tests.support.tiny_mmdit import tiny_t5_tokenizer, tiny_vae

SIZE = 64  # pixels
WIDTH = 32


def tiny_cogview4(folder: Path) -> Path:
    """Save a folder of CogView4 and return it: a flow; text of any length; one call for each branch of guidance."""
    torch.manual_seed(0)
    network = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    config = GlmConfig(head_dim=8, intermediate_size=8, pad_token_id=0, **_decoder())
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    pipeline = CogView4Pipeline(
        transformer=network,
        vae=_vae(),
        text_encoder=GlmModel(config).eval(),
        tokenizer=tiny_t5_tokenizer(),
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_hunyuan(folder: Path) -> Path:
    """Save a folder of HunyuanDiT and return it: noise and variance, two text encoders, steps that draw noise."""
    torch.manual_seed(0)
    network = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        hidden_size=24,
        activation_fn="gelu-approximate",
    )
    bert = BertConfig(
        vocab_size=10, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=WIDTH
    )
    t5 = T5Config(d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, vocab_size=64)
    words = _words()
    words.model_max_length = 77
    pipeline = HunyuanDiTPipeline(
        transformer=network,
        vae=_vae(),
        text_encoder=BertModel(bert).eval(),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=tiny_t5_tokenizer(),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_zimage(folder: Path) -> Path:
    """Save a folder of Z-Image and return it: lists of texts of any length, and the time and the velocity reversed."""
    torch.manual_seed(0)
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    words = _words()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    pipeline = ZImagePipeline(
        transformer=network,
        vae=_vae(shift_factor=0.1),
        text_encoder=Qwen3Model(Qwen3Config(head_dim=8, intermediate_size=16, **_decoder())).eval(),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder)
    return folder


def _decoder() -> dict[str, int]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    }


def _vae(**changes: Any) -> AutoencoderKL:
    """Make an autoencoder of eight pixels per latent pixel, which some pipelines take for granted."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return tiny_vae(block_out_channels=(8,) * 4, sample_size=SIZE, **blocks, **changes)


def _words() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "red", "dog", "on", "table", "zebra"]
    made = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    special = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), names, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
