"""PixArt-Sigma and PixArt-Alpha: a transformer that predicts noise, with cross-attention to the hidden states of T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from audit.errors import AuditError
from audit.models.architecture import check_vae, check_vocabulary, check_width, latent_size
from audit.models.conditioning import Conditioning, Tokens
from audit.models.flow import screen_alphas
from audit.models.model import AS_GIVEN, Model
from audit.models.sampler import DdimSchedule, NearestSchedule
from audit.models.sd import HIDDEN, ready
from audit.models.t5_text import t5_tokens, t5_words
from audit.models.transfers import to_device

# Shapes: B captions, K text positions, D width of T5; C, H and W of the latent.

MASK = "encoder_attention_mask"
SIZED = 128  # Alpha is given the size of the image if this is its `sample_size`


@dataclass(frozen=True, eq=False, kw_only=True)
class PixArtSigma(Model):
    """A model of PixArt-Sigma."""

    NETWORKS: ClassVar = {
        "transformer": PixArtTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": T5EncoderModel,
    }
    TOKENIZERS: ClassVar = {"tokenizer": T5Tokenizer}
    DENOISER: ClassVar = "transformer"
    ADDITIONS: ClassVar = ("lora",)
    PLANTED: ClassVar = ("screen",)
    CALL: ClassVar = AS_GIVEN
    LONGEST: ClassVar = 300  # text positions
    PIPELINE: ClassVar[type] = PixArtSigmaPipeline

    transformer: PixArtTransformer2DModel = field(repr=False)
    text_encoder: T5EncoderModel = field(repr=False)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        transformer, encoder = parts["transformer"], parts["text_encoder"]
        config, channels = transformer.config, transformer.config["in_channels"]
        check_vae(parts["vae"].config, channels, where)
        check_vocabulary(parts["tokenizer"], encoder, where)
        check_width(encoder.config.d_model, config["caption_channels"], "hidden states", where)
        what = None
        if config["out_channels"] not in (channels, 2 * channels):
            what = f"the transformer has {channels} input and {config['out_channels']} output channels"
        elif transformer.use_additional_conditions != cls._sized(config):
            what = f"sample_size is {config['sample_size']} and use_additional_conditions is "
            what += f"{transformer.use_additional_conditions}, with which {cls.PIPELINE.__name__} does not run"
        if what is not None:
            hint = "Take transformer and text_encoder of the same model, with their configurations."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")

    @classmethod
    def _sized(cls, _config: Mapping[str, Any]) -> bool:
        """Tell whether the pipeline gives the transformer the size of the image."""
        return False

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents (see `Model`).

        The configuration stays as it is: `sample_size` also selects position embeddings and the pipeline's resolutions.
        """
        config = parts["transformer"].config
        return config["in_channels"], *latent_size(config, parts["vae"].config, resolution, where)

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The cross-attention of each block; `attn1` is self-attention of the image."""
        return tuple(block.attn2 for block in self.transformer.transformer_blocks)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by: the width of a patch in pixels."""
        return self.pixels_per_latent * int(self.transformer.config["patch_size"])

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions in lower case, as the pipeline does without `clean_caption` (see `Model`)."""
        return t5_tokens([caption.lower().strip() for caption in captions], self.tokenizer, self.LONGEST)

    def words(self, caption: str) -> list[int]:
        """Return the ids of a caption's words (see `Model`)."""
        return t5_words(self.tokenize([caption]))

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute hidden states [B, K, D] and the mask [B, K] (see `Model`).

        The hidden states of padding are zero, so that no distance depends on them: the mask hides them from the image.
        """
        mask_BK = to_device(tokens.mask_BK, self.device)
        given_BK = None if mask_BK.is_meta else mask_BK  # transformers looks at the values of a mask
        hidden_BKD = self.text_encoder(to_device(tokens.ids_BK, self.device), attention_mask=given_BK)[0].to(self.dtype)
        return Conditioning({HIDDEN: hidden_BKD * mask_BK[..., None], MASK: mask_BK}, tokens)

    def schedule(self, steps: int) -> DdimSchedule:
        """Return the schedule of a DDIM run (see `Model`)."""
        return DdimSchedule(self.scheduler_config, steps)

    def screen_schedule(self) -> NearestSchedule:
        """Return the timesteps whose noise levels are nearest to those of a screen of Stable Diffusion."""
        return NearestSchedule(self.scheduler_config, screen_alphas())

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the transformer, and leave out the variances that it predicts (see `Model`)."""
        count = len(latents_BCHW)
        sample = self.transformer(
            latents_BCHW.to(self.dtype),
            timestep=torch.full((count,), timestep, device=self.device),
            added_cond_kwargs=self._sizes(count),
            **conditioning.tensors,
        )
        predicted_BCHW: Tensor = sample.sample[:, : latents_BCHW.shape[1]].float()
        return predicted_BCHW

    def _sizes(self, _count: int) -> dict[str, Tensor | None]:
        return {"resolution": None, "aspect_ratio": None}

    def pipeline(self) -> Any:
        """Make the pipeline with DDIM (see `Model`); call it with the arguments CALL."""
        scheduler = DDIMScheduler.from_config(self.scheduler_config)
        return ready(self.PIPELINE(**self.networks, tokenizer=self.tokenizer, scheduler=scheduler), self)


@dataclass(frozen=True, eq=False, kw_only=True)
class PixArtAlpha(PixArtSigma):
    """A model of PixArt-Alpha. The network for 1024 pixels is given the size of the image."""

    LONGEST: ClassVar = 120
    PIPELINE: ClassVar[type] = PixArtAlphaPipeline

    @classmethod
    def _sized(cls, config: Mapping[str, Any]) -> bool:
        return bool(config["sample_size"] == SIZED)

    def _sizes(self, count: int) -> dict[str, Tensor | None]:
        if not self._sized(self.transformer.config):
            return super()._sizes(count)
        height, width = self.resolution
        resolution_B2 = torch.tensor([[height, width]], dtype=self.dtype, device=self.device).expand(count, -1)
        ratio_B1 = torch.tensor([[height / width]], dtype=self.dtype, device=self.device).expand(count, -1)
        return {"resolution": resolution_B2, "aspect_ratio": ratio_B1}
