"""Stable Diffusion 3 and 3.5: joint attention to two CLIP encoders and T5, and a pooled vector of both CLIPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from audit.attention.probe import Places
from audit.errors import AuditError, UsageError
from audit.models.architecture import check_vocabulary, check_width
from audit.models.clip_text import clip_tokens, clip_words
from audit.models.conditioning import Conditioning, Tokens
from audit.models.mmdit import PATCH, Mmdit
from audit.models.sd import HIDDEN, ready
from audit.models.t5_text import t5_tokens, t5_words
from audit.models.transfers import to_device

# Shapes: B captions, K text positions (CLIP's, then T5's), D width of the text, P width of the pooled vector; C, H and
# W of the latent.

POOLED = "pooled_projections"
T5_LENGTH = 256  # the default of StableDiffusion3Pipeline
# What stands at a text position, in the order of the canonical layout.
BOS, CLIP_WORD, T5_WORD, END, PADDING = range(5)


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion3(Mmdit):
    """A model of Stable Diffusion 3 or 3.5 without T5: the network is given zeros in its place."""

    NETWORKS: ClassVar = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    TOKENIZERS: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    LINEAR: ClassVar = False
    PLANTED: ClassVar[tuple[str, ...]] = ("screen",)

    text_encoder: CLIPTextModelWithProjection = field(repr=False)
    text_encoder_2: CLIPTextModelWithProjection = field(repr=False)
    tokenizer_2: Any = field(repr=False)

    @classmethod
    def of_folder(cls, folder: Path) -> type[StableDiffusion3]:
        """Return the class with or without T5 (see `Model`)."""
        return StableDiffusion3WithT5 if (folder / "text_encoder_3").is_dir() else StableDiffusion3

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        super().check(parts, where)
        config, encoders = parts["transformer"].config, [parts["text_encoder"], parts["text_encoder_2"]]
        if config["patch_size"] != PATCH or config["out_channels"] not in (None, config["in_channels"]):
            what = f"the transformer has patches of {config['patch_size']}, {config['in_channels']} input and "
            what += f"{config['out_channels']} output channels"
            hint = "Audit a text-to-image model of Stable Diffusion 3 or 3.5."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")
        for tokenizer, encoder in zip(("tokenizer", "tokenizer_2"), encoders, strict=True):
            check_vocabulary(parts[tokenizer], encoder, where)
        made = sum(encoder.config.projection_dim for encoder in encoders)
        check_width(made, config["pooled_projection_dim"], "pooled vectors", where)
        width = sum(encoder.config.hidden_size for encoder in encoders)
        if width > config["joint_attention_dim"]:
            check_width(width, config["joint_attention_dim"], "hidden states", where)

    @classmethod
    def channels(cls, transformer: Mapping[str, Any]) -> int:
        """Return the number of latent channels."""
        return int(transformer["in_channels"])

    @classmethod
    def own_size(cls, transformer: Mapping[str, Any]) -> int:
        """Return the width of the latents by default."""
        return int(transformer["sample_size"])

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents, which the position embeddings limit (see `Model`)."""
        shape = super().own_latent_shape(parts, resolution, where)
        _check_size(shape, parts["transformer"].config, where, "model.resolution (resolution=)")
        return shape

    def at_resolution(self, resolution: int | tuple[int, int] | None) -> Self:
        """Return a model of another resolution, which the position embeddings limit (see `Model`)."""
        model = super().at_resolution(resolution)
        _check_size(model.latent_shape, self.transformer.config, "screen.resolution", "screen.resolution (resolution=)")
        return model

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The joint attention of each block; `attn2` of 3.5 medium is self-attention of the image."""
        return tuple(block.attn for block in self.transformer.transformer_blocks)

    @property
    def places(self) -> Places:
        """Image positions come first."""
        return Places(slice(0, self.patches), slice(self.patches, None), joint=True)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions for both CLIP encoders, whose tokenizers differ in their padding only (see `Model`)."""
        one, two = (
            clip_tokens(captions, each, self.tokenizer.model_max_length) for each in (self.tokenizer, self.tokenizer_2)
        )
        ids_BK = torch.cat([one.ids_BK, two.ids_BK], dim=1)
        return Tokens(ids_BK, pad(one.mask_BK, (0, T5_LENGTH)), one.counts_B, one.end_B)

    def words(self, caption: str) -> list[int]:
        """Return CLIP's ids of a caption's words (see `Model`)."""
        return clip_words(clip_tokens([caption], self.tokenizer, self.tokenizer.model_max_length))

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute hidden states [B, K, D] and the pooled vector [B, P] (see `Model`)."""
        ids_BK, length = to_device(tokens.ids_BK, self.device), self.tokenizer.model_max_length
        parts = zip((self.text_encoder, self.text_encoder_2), ids_BK[:, : 2 * length].chunk(2, dim=1), strict=True)
        one, two = (encoder(ids, output_hidden_states=True) for encoder, ids in parts)
        clip_BKD = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        t5_BKD = self.t5(ids_BK[:, 2 * length :])
        clip_BKD = pad(clip_BKD, (0, t5_BKD.shape[-1] - clip_BKD.shape[-1]))
        hidden_BKD, pooled_BP = torch.cat([clip_BKD, t5_BKD], dim=1), torch.cat([one[0], two[0]], dim=-1)
        return Conditioning({HIDDEN: hidden_BKD.to(self.dtype), POOLED: pooled_BP.to(self.dtype)}, tokens)

    def t5(self, ids_BK: Tensor) -> Tensor:
        """Return what stands in for T5's hidden states: zeros [B, K, D]."""
        width = self.transformer.config["joint_attention_dim"]
        return torch.zeros(len(ids_BK), T5_LENGTH, width, dtype=self.dtype, device=self.device)

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the transformer (see `Model`)."""
        time_B = torch.full((len(latents_BCHW),), timestep, dtype=torch.float32, device=self.device)
        sample = self.transformer(latents_BCHW.to(self.dtype), timestep=time_B, **conditioning.tensors)
        predicted_BCHW: Tensor = sample.sample.float()
        return predicted_BCHW

    def pipeline(self) -> Any:
        """Make a StableDiffusion3Pipeline (see `Model`)."""
        parts: dict[str, Any] = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
        parts |= self.networks | {name: getattr(self, name) for name in self.TOKENIZERS}
        scheduler = FlowMatchEulerDiscreteScheduler(**self.scheduler_config)
        pipeline = StableDiffusion3Pipeline(**parts, scheduler=scheduler)
        _, height, width = self.latent_shape
        if height == width:
            pipeline.default_sample_size = height
        return ready(pipeline, self)


def _check_size(shape: tuple[int, int, int], config: Mapping[str, Any], where: str, setting: str) -> None:
    _, height, width = shape
    longest = config["pos_embed_max_size"] * PATCH
    if max(height, width) > longest:
        what = f"latents of {height} x {width} are larger than the {longest} x {longest} position embeddings"
        raise UsageError(what, where=where, hint=f"Set {setting} to a smaller size.")


@dataclass(frozen=True, eq=False, kw_only=True)
class StableDiffusion3WithT5(StableDiffusion3):
    """A model of Stable Diffusion 3 or 3.5 with T5."""

    NETWORKS: ClassVar = StableDiffusion3.NETWORKS | {"text_encoder_3": T5EncoderModel}
    TOKENIZERS: ClassVar = StableDiffusion3.TOKENIZERS | {"tokenizer_3": T5Tokenizer}
    PLANTED: ClassVar = ()  # the planted model has no T5

    text_encoder_3: T5EncoderModel = field(repr=False)
    tokenizer_3: Any = field(repr=False)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        super().check(parts, where)
        check_vocabulary(parts["tokenizer_3"], parts["text_encoder_3"], where)
        width = parts["transformer"].config["joint_attention_dim"]
        check_width(parts["text_encoder_3"].config.d_model, width, "hidden states", where)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions for all encoders (see `Model`).

        In the canonical layout, CLIP's words come before T5's words, and both END and all padding after them.
        """
        clip, t5 = super().tokenize(captions), t5_tokens(captions, self.tokenizer_3, T5_LENGTH)
        length = self.tokenizer.model_max_length
        place_K = torch.arange(length + T5_LENGTH)
        mask_BK = torch.cat([clip.mask_BK[:, :length], t5.mask_BK], dim=1)
        is_end_BK = (place_K == clip.end_B[:, None]) | (place_K == length + t5.end_B[:, None])
        role_BK = torch.where(place_K < length, CLIP_WORD, T5_WORD).masked_fill(mask_BK == 0, PADDING)
        role_BK = role_BK.masked_fill(is_end_BK, END).masked_fill(place_K == 0, BOS)
        return Tokens(
            torch.cat([clip.ids_BK, t5.ids_BK], dim=1),
            mask_BK,
            clip.counts_B + t5.counts_B - 2,
            clip.end_B,
            role_BK.argsort(dim=1, stable=True),
        )

    def word_texts(self, caption: str) -> list[str]:
        """Return the texts of CLIP's words, then of T5's (see `Model`)."""
        words = t5_words(t5_tokens([caption], self.tokenizer_3, T5_LENGTH))
        return [*super().word_texts(caption), *(f"{self.tokenizer_3.decode([word]).strip()} (T5)" for word in words)]

    def t5(self, ids_BK: Tensor) -> Tensor:
        """Compute T5's hidden states, without a mask: [B, K, D]."""
        hidden_BKD: Tensor = self.text_encoder_3(ids_BK)[0]
        return hidden_BKD.to(self.dtype)
