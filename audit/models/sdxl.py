"""Stable Diffusion XL: a UNet that is given the hidden states of two CLIP encoders, a pooled vector, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from audit.errors import AuditError
from audit.models.architecture import check_parts, check_text, check_unet, check_vae
from audit.models.clip_text import clip_tokens
from audit.models.conditioning import Conditioning, Tokens
from audit.models.sd import HIDDEN, StableDiffusion, ready
from audit.models.transfers import to_device

# Shapes: B captions, K text positions, D width of both text encoders together, P width of the pooled vector; C, H and W
# of the latent.

POOLED, SIZES = "text_embeds", "time_ids"
FORCE_ZEROS = "force_zeros_for_empty_prompt"
SIZE_COUNT = 6  # original height and width, top and left of the crop, target height and width


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusionXL(StableDiffusion):
    """A model of Stable Diffusion XL."""

    NETWORKS: ClassVar = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    TOKENIZERS: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    SETTINGS: ClassVar = {FORCE_ZEROS: True}
    ADDITIONS: ClassVar = ("lora",)
    PLANTED: ClassVar = ("screen",)

    text_encoder_2: CLIPTextModelWithProjection = field(repr=False)
    tokenizer_2: Any = field(repr=False)

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Check that a folder is complete (see `Model`)."""
        check_parts(folder, cls.NETWORKS, cls.TOKENIZERS)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        unet, encoders = parts["unet"].config, [parts["text_encoder"], parts["text_encoder_2"]]
        check_unet(unet, where, "text_time")
        check_vae(parts["vae"].config, unet["in_channels"], where)
        width = sum(encoder.config.hidden_size for encoder in encoders)
        for tokenizer, encoder in zip(("tokenizer", "tokenizer_2"), encoders, strict=True):
            check_text(parts[tokenizer], encoder, unet, where, width)
        given = unet["addition_time_embed_dim"] * SIZE_COUNT + encoders[1].config.projection_dim
        if unet["projection_class_embeddings_input_dim"] != given:
            what = f"the UNet takes {unet['projection_class_embeddings_input_dim']} values of sizes and pooled text, "
            hint = "Audit the base model; a refiner makes no images from noise."
            raise AuditError(f"{what}the pipeline gives {given}", where=where, hint=hint, kind="unsupported_model")

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions with both tokenizers, which differ in their padding only (see `Model`)."""
        longest = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        one, two = (clip_tokens(captions, each, longest) for each in (self.tokenizer, self.tokenizer_2))
        return Tokens(torch.cat([one.ids_BK, two.ids_BK], dim=1), one.mask_BK, one.counts_B, one.end_B)

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute hidden states [B, K, D], the pooled vector [B, P] and the sizes [B, 6] (see `Model`).

        The hidden states are those before the last layer of each text encoder.
        """
        ids = to_device(tokens.ids_BK, self.device).chunk(2, dim=1)
        encoders = self.text_encoder, self.text_encoder_2
        one, two = (encoder(each, output_hidden_states=True) for encoder, each in zip(encoders, ids, strict=True))
        hidden_BKD = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        return Conditioning(
            {HIDDEN: hidden_BKD.to(self.dtype), POOLED: two[0].to(self.dtype), SIZES: self._sizes(len(tokens))}, tokens
        )

    def _sizes(self, count: int) -> Tensor:
        height, width = self.resolution
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=self.dtype)
        return to_device(sizes, self.device).expand(count, -1)

    def null_tokens(self) -> Tokens | None:
        """Return None if the unconditional branch is zeros (see `Model`)."""
        return None if self.settings[FORCE_ZEROS] else super().null_tokens()

    def null(self) -> Conditioning:
        """Return zeros instead of an encoded prompt, or the encoded empty prompt, as the pipeline is set to do."""
        empty = self.encode([""])
        if not self.settings[FORCE_ZEROS]:
            return empty
        zeros = {name: torch.zeros_like(empty.tensors[name]) for name in (HIDDEN, POOLED)}
        return Conditioning({**empty.tensors, **zeros})

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the UNet (see `Model`)."""
        tensors = conditioning.tensors
        sample = self.unet(
            latents_BCHW.to(self.dtype),
            self._time(timestep),
            encoder_hidden_states=tensors[HIDDEN],
            added_cond_kwargs={name: tensors[name] for name in (POOLED, SIZES)},
        )
        predicted_BCHW: Tensor = sample.sample.float()
        return predicted_BCHW

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode latents, in float32 if the autoencoder overflows in float16 (see `Model`)."""
        if self.dtype != torch.float16 or not self.vae.config["force_upcast"]:
            return super().decode(latents_BCHW)
        try:
            decoded_B3hw: Tensor = self.vae.float().decode(latents_BCHW / self.vae.config["scaling_factor"]).sample
            return decoded_B3hw
        finally:
            self.vae.half()

    def pipeline(self) -> Any:
        """Make a StableDiffusionXLPipeline with DDIM (see `Model`)."""
        pipeline = StableDiffusionXLPipeline(
            **self.networks,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            scheduler=DDIMScheduler.from_config(self.scheduler_config),
            add_watermarker=False,
            **self.settings,
        )
        return ready(pipeline, self)
