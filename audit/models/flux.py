"""FLUX.1 dev and schnell: joint attention to T5, a pooled vector of CLIP, and, in dev, an embedded guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from audit.attention.probe import Places
from audit.errors import AuditError
from audit.models.architecture import check_vocabulary, check_width
from audit.models.clip_text import clip_tokens
from audit.models.conditioning import Conditioning, Tokens
from audit.models.mmdit import PATCH, Mmdit
from audit.models.sd import HIDDEN, ready
from audit.models.sd3 import POOLED
from audit.models.t5_text import t5_tokens, t5_words
from audit.models.transfers import to_device

# Shapes: B captions, K text positions, N image positions, D width of the text, P width of the pooled vector; C, H and W
# of the latent.

GUIDANCE = "guidance"
T5_LENGTH = 512  # this and the next two are the defaults of FluxPipeline
SCALE = 3.5
SIZE = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Flux(Mmdit):
    """A model of FLUX.1. It has no unconditional branch; a screen gives dev the pipeline's default guidance scale."""

    NETWORKS: ClassVar = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    TOKENIZERS: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}
    GUIDED: ClassVar = False
    LINEAR: ClassVar = True

    text_encoder: CLIPTextModel = field(repr=False)
    text_encoder_2: T5EncoderModel = field(repr=False)
    tokenizer_2: Any = field(repr=False)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        config = parts["transformer"].config
        if config["patch_size"] != 1 or config["out_channels"] not in (None, config["in_channels"]):
            what = f"the transformer has {config['in_channels']} input and {config['out_channels']} output channels"
            hint = "Audit FLUX.1 dev or schnell; control, fill and Kontext models are given images."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")
        super().check(parts, where)
        for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            check_vocabulary(parts[tokenizer], parts[encoder], where)
        pooled, hidden = config["pooled_projection_dim"], config["joint_attention_dim"]
        check_width(parts["text_encoder"].config.hidden_size, pooled, "pooled vectors", where)
        check_width(parts["text_encoder_2"].config.d_model, hidden, "hidden states", where)

    @classmethod
    def channels(cls, transformer: Mapping[str, Any]) -> int:
        """Return the number of latent channels."""
        return int(transformer["in_channels"]) // PATCH**2

    @classmethod
    def own_size(cls, transformer: Mapping[str, Any]) -> int:
        """Return the width of the latents by default."""
        return SIZE

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The attention of the double blocks, then of the single blocks."""
        blocks = [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]
        return tuple(block.attn for block in blocks)

    @property
    def places(self) -> Places:
        """Text positions come first."""
        return Places(slice(T5_LENGTH, None), slice(0, T5_LENGTH), joint=True)

    @property
    def word_tokenizer(self) -> Any:
        """T5's tokenizer: the image attends to T5's hidden states only."""
        return self.tokenizer_2

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions for T5, and for CLIP beside it (see `Model`)."""
        t5, clip = t5_tokens(captions, self.tokenizer_2, T5_LENGTH), self._clip(captions)
        return Tokens(torch.cat([t5.ids_BK, clip.ids_BK], dim=1), t5.mask_BK, t5.counts_B, t5.end_B, t5.order_BK)

    def _clip(self, captions: Sequence[str]) -> Tokens:
        return clip_tokens(captions, self.tokenizer, self.tokenizer.model_max_length)

    def words(self, caption: str) -> list[int]:
        """Return T5's ids of a caption's words (see `Model`)."""
        return t5_words(self.tokenize([caption]))

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute T5's hidden states [B, K, D] and CLIP's pooled vector [B, P] (see `Model`)."""
        t5_BK, clip_BK = to_device(tokens.ids_BK, self.device).tensor_split((T5_LENGTH,), dim=1)
        hidden_BKD = self.text_encoder_2(t5_BK)[0].to(self.dtype)
        pooled_BP = self.text_encoder(clip_BK).pooler_output.to(self.dtype)
        return self.with_guidance(Conditioning({HIDDEN: hidden_BKD, POOLED: pooled_BP}, tokens), SCALE)

    def with_guidance(self, conditioning: Conditioning, scale: float) -> Conditioning:
        """Return a conditioning with a guidance scale, which schnell does not take (see `Model`)."""
        if not self.transformer.config["guidance_embeds"]:
            return conditioning
        scale_B = torch.full((len(conditioning),), scale, dtype=torch.float32, device=self.device)
        return Conditioning({**conditioning.tensors, GUIDANCE: scale_B}, conditioning.tokens)

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the transformer on packed latents (see `Model`)."""
        size, _, height, width = latents_BCHW.shape
        packed_BND = FluxPipeline._pack_latents(latents_BCHW.to(self.dtype), *latents_BCHW.shape)
        ids_N3 = FluxPipeline._prepare_latent_image_ids(size, height // PATCH, width // PATCH, self.device, self.dtype)
        output_BND = self.transformer(
            packed_BND,
            timestep=torch.full((size,), timestep, dtype=self.dtype, device=self.device) / 1000,
            img_ids=ids_N3,
            txt_ids=torch.zeros(T5_LENGTH, 3, dtype=self.dtype, device=self.device),
            **conditioning.tensors,
        ).sample
        predicted_BCHW: Tensor = FluxPipeline._unpack_latents(output_BND, height, width, 1).float()
        return predicted_BCHW

    def call_pipeline(
        self, pipeline: Any, captions: Sequence[str], noise_BCHW: Tensor, steps: int, guidance_scale: float
    ) -> Tensor:
        """Call a pipeline, which takes and returns packed latents (see `Model`)."""
        packed_BND = FluxPipeline._pack_latents(noise_BCHW, *noise_BCHW.shape)
        packed_BND = super().call_pipeline(pipeline, captions, packed_BND, steps, guidance_scale)
        _, height, width = self.latent_shape
        latents_BCHW: Tensor = FluxPipeline._unpack_latents(packed_BND, height, width, 1)
        return latents_BCHW

    def pipeline(self) -> Any:
        """Make a FluxPipeline (see `Model`)."""
        scheduler = FlowMatchEulerDiscreteScheduler(**self.scheduler_config)
        tokenizers = {name: getattr(self, name) for name in self.TOKENIZERS}
        pipeline = FluxPipeline(**self.networks, **tokenizers, scheduler=scheduler)
        _, height, width = self.latent_shape
        if height == width:
            pipeline.default_sample_size = height
        return ready(pipeline, self)
