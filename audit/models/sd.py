"""Stable Diffusion 1.x and 2.x: a UNet that predicts noise or velocity, with the hidden states of one CLIP encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import __version__ as diffusers_version
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from audit.attention.probe import cross_attention_layers, finest_down_layers
from audit.models.architecture import check_folder, check_text, check_unet, check_vae, latent_size
from audit.models.clip_text import clip_tokens, clip_words
from audit.models.conditioning import Conditioning, Tokens
from audit.models.model import Model
from audit.models.sampler import SCREEN_STEPS, DdimSchedule
from audit.models.shared_prefix import shared_prefix
from audit.models.textual_inversion import expanded, tokens_of_several_vectors
from audit.models.transfers import to_device

# Shapes: B captions, K text positions; C, H and W of the latent.

HIDDEN = "encoder_hidden_states"


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion(Model):
    """A model of Stable Diffusion 1.x or 2.x."""

    NETWORKS: ClassVar = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    TOKENIZERS: ClassVar = {"tokenizer": CLIPTokenizer}
    DENOISER: ClassVar = "unet"
    ADDITIONS: ClassVar[tuple[str, ...]] = ("lora", "textual_inversion")
    PLANTED: ClassVar[tuple[str, ...]] = ("screen", "generate")

    unet: UNet2DConditionModel = field(repr=False)
    text_encoder: CLIPTextModel = field(repr=False)

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Check the layout of a folder (see `Model`)."""
        check_folder(folder)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        check_unet(parts["unet"].config, where)
        check_vae(parts["vae"].config, parts["unet"].config["in_channels"], where)
        check_text(parts["tokenizer"], parts["text_encoder"], parts["unet"].config, where)
        tokens_of_several_vectors(parts["tokenizer"])

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents, and note it in the UNet's configuration (see `Model`)."""
        unet = parts["unet"]
        height, width = latent_size(unet.config, parts["vae"].config, resolution, where)
        # So that a pipeline makes images of the same size, and diffusers' constructor changes nothing else.
        unet.register_to_config(
            sample_size=height if height == width else [height, width], _diffusers_version=diffusers_version
        )
        return unet.config["in_channels"], height, width

    @cached_property
    def layers(self) -> tuple[Attention, ...]:
        """The cross-attention layers in order of execution."""
        return tuple(cross_attention_layers(self.unet))

    @property
    def finest_layers(self) -> list[Attention]:
        """The cross-attention layers of the first down block that has any."""
        return finest_down_layers(self.unet)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by: each down block but the last halves the latents.

        The up blocks would otherwise interpolate to odd sizes.
        """
        return self.pixels_per_latent * int(2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @cached_property
    def _several(self) -> list[str]:
        return tokens_of_several_vectors(self.tokenizer)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions (see `Model`).

        Textual-inversion tokens that stand for several vectors are expanded first, as in diffusers.
        """
        texts = expanded(captions, self.tokenizer) if self._several else captions
        longest = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        return clip_tokens(texts, self.tokenizer, longest)

    def words(self, caption: str) -> list[int]:
        """Return the ids of a caption's words (see `Model`)."""
        return clip_words(self.tokenize([caption]))

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute the hidden states of captions, [B, K, D] (see `Model`)."""
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask_BK = to_device(tokens.mask_BK, self.device) if masked else None
        hidden_BKD: Tensor = self.text_encoder(to_device(tokens.ids_BK, self.device), attention_mask=mask_BK)[0]
        return Conditioning({HIDDEN: hidden_BKD.to(self.dtype)}, tokens)

    def schedule(self, steps: int) -> DdimSchedule:
        """Return the schedule of a DDIM run (see `Model`)."""
        return DdimSchedule(self.scheduler_config, steps)

    def screen_schedule(self) -> DdimSchedule:
        """Return the schedule of a run of 50 steps: the screen of a model looks at its own timesteps."""
        return self.schedule(SCREEN_STEPS)

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the UNet (see `Model`)."""
        sample = self.unet(
            latents_BCHW.to(self.dtype), self._time(timestep), encoder_hidden_states=conditioning.tensors[HIDDEN]
        )
        predicted_BCHW: Tensor = sample.sample.float()
        return predicted_BCHW

    def _time(self, timestep: float) -> Tensor:
        """Return a timestep on the device. The UNet would copy a number to a GPU and block."""
        return torch.full((), timestep, device=self.device)

    def sharing_prefix(self, period: int, rows: int) -> AbstractContextManager[None]:
        """Compute what comes before the first cross-attention once (see `Model`)."""
        return shared_prefix(self.unet, period, rows)

    def pipeline(self) -> Any:
        """Make a StableDiffusionPipeline with DDIM (see `Model`)."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        # Set afterwards, because the constructor modifies a configuration that it considers outdated.
        pipeline.scheduler = DDIMScheduler.from_config(self.scheduler_config)
        return ready(pipeline, self)


def ready(pipeline: Any, model: Model) -> Any:
    """Return a pipeline after attaching the model, against which a calibration is checked (audit.mitigated, only=)."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.audited = model
    return pipeline
