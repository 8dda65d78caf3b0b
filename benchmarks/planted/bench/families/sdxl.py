"""Stable Diffusion XL at toy size: a UNet, two CLIP encoders, the pooled vector of the second one, and sizes."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from benchmarks.planted import denoiser
from benchmarks.planted.artwork import SIDE
from benchmarks.planted.bench.families.clip_pair import clip_pair, clip_states
from benchmarks.planted.bench.families.family import Family, Texts
from benchmarks.planted.text import WIDTH, tokenize

SIZES = (SIDE, SIDE, 0, 0, SIDE, SIDE)  # original height and width, top and left of the crop, target height and width
SIZE_WIDTH = 16  # values in which a size is embedded


class StableDiffusionXL(Family):
    """A UNet whose finest blocks have no attention, and whose coarsest have two layers of it, as in the original."""

    def __init__(self, texts: Texts) -> None:
        self.tokenizer, self.encoders = clip_pair(texts)
        self.network = unet()
        hidden_TKD, (_, pooled_TP) = clip_states(self.encoders, tokenize(self.tokenizer, texts.trained))
        # The pipeline gives zeros in place of an empty prompt.
        hidden_TKD[0], pooled_TP[0] = 0, 0
        self._hidden_TKD, self._pooled_TP = hidden_TKD, pooled_TP

    def predict(self, noisy_BCHW: Tensor, time_B: Tensor, text_B: Tensor) -> Tensor:
        """Run the UNet (see `Family`)."""
        sizes_B6 = noisy_BCHW.new_tensor([SIZES]).expand(len(text_B), -1)
        added = {"text_embeds": self._pooled_TP[text_B], "time_ids": sizes_B6}
        hidden_BKD = self._hidden_TKD[text_B]
        predicted_BCHW: Tensor = self.network(noisy_BCHW, time_B, hidden_BKD, added_cond_kwargs=added).sample
        return predicted_BCHW

    def save(self, folder: Path, vae: AutoencoderKL) -> None:
        """Save a StableDiffusionXLPipeline (see `Family`)."""
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=self.encoders[0].text_model,
            text_encoder_2=self.encoders[1],
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer,
            unet=self.network.eval(),
            scheduler=denoiser.scheduler(),
        ).save_pretrained(folder, safe_serialization=True)


def unet() -> UNet2DConditionModel:
    """Return an untrained UNet with 3.9 million parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 6),  # the number of heads
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=SIZE_WIDTH * len(SIZES) + WIDTH,
    )
