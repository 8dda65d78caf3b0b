"""Make a folder of Stable Diffusion XL with random weights, a few megabytes in size."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.tiny_mmdit import tiny_vae

TINY = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}


def tiny_xl(
    folder: Path,
    tokenizer: Path,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    layers: int = 3,
    **settings: bool,
) -> Path:
    """Save the folder and return it.

    Args:
        folder: Where to save it.
        tokenizer: Folder of the tokenizer to use for both text encoders.
        variant: Variant of the weights; "fp16" saves them in float16.
        max_shard_size: Size of the files of weights.
        layers: Number of layers of the second text encoder; from its tenth layer, a single file of XL is recognized.
        settings: Entries of `model_index.json`.
    """
    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id}
    config = CLIPTextConfig(vocab_size=len(words), projection_dim=32, hidden_act="gelu", **TINY, **ends)
    second = CLIPTextConfig.from_dict(config.to_dict() | {"num_hidden_layers": layers})
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.register_to_config(steps_offset=1, timestep_spacing="leading", prediction_type="epsilon")
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(sample_size=32),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=scheduler,
        **settings,
    )
    pipeline.to(torch.float16 if variant == "fp16" else torch.float32)
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    for name in ("tokenizer", "tokenizer_2"):  # as they are, whatever the version of transformers writes
        shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)
    return folder
