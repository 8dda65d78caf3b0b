"""SANA: a transformer with linear self-attention, trained by flow matching, with cross-attention to Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from math import lcm
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Gemma2Model, GemmaTokenizer

from audit.errors import AuditError
from audit.models.architecture import check_vae, check_vocabulary, check_width, checked_size, pixels_per_latent
from audit.models.conditioning import Conditioning, Tokens
from audit.models.flow import FlowSchedule, screen_flow
from audit.models.flow_scheduler import flow_schedule, read_flow_scheduler
from audit.models.model import AS_GIVEN, Model
from audit.models.sd import HIDDEN, ready
from audit.models.transfers import to_device

# Shapes: B captions, N tokens, K of them that the image attends to, D width of Gemma; C, H and W of the latent.

MASK = "encoder_attention_mask"
LONGEST = 300  # text positions, the default of SanaPipeline
SIDE = 32  # pixels; the pipeline takes multiples of it
# What the pipeline puts before captions by default. The image attends to none of it.
INSTRUCTION = "\n".join(signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sana(Model):
    """A model of SANA. The unconditional branch is the empty prompt without the instruction that captions get."""

    NETWORKS: ClassVar = {
        "transformer": SanaTransformer2DModel,
        "vae": AutoencoderDC,
        "text_encoder": Gemma2Model,
    }
    TOKENIZERS: ClassVar = {"tokenizer": GemmaTokenizer}
    DENOISER: ClassVar = "transformer"
    ADDITIONS: ClassVar = ("lora",)
    CALL: ClassVar = AS_GIVEN

    transformer: SanaTransformer2DModel = field(repr=False)
    text_encoder: Gemma2Model = field(repr=False)

    @classmethod
    def read_scheduler(cls, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the scheduler of a flow, whose shift the pipeline does not make depend on the size (see `Model`)."""
        config, about = read_flow_scheduler(folder, multistep=True)
        if config["use_dynamic_shifting"]:
            what, hint = "the scheduler's use_dynamic_shifting is True", "SanaPipeline runs without: set it to false."
            raise AuditError(what, where=str(folder / "scheduler"), hint=hint, kind="unsupported_model")
        return config, about

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the parts fit together (see `Model`)."""
        config, tokenizer, encoder = parts["transformer"].config, parts["tokenizer"], parts["text_encoder"]
        channels, outputs = config["in_channels"], config["out_channels"]
        check_vae(parts["vae"].config, channels, where)
        check_vocabulary(tokenizer, encoder, where)
        check_width(encoder.config.hidden_size, config["caption_channels"], "hidden states", where)
        what, empty = None, tokenizer.convert_ids_to_tokens(tokenizer("").input_ids)
        if outputs not in (None, channels, 2 * channels):
            what = f"the transformer has {channels} input and {outputs} output channels"
        elif config["guidance_embeds"]:
            what = "the transformer is given the guidance scale (guidance_embeds), as in SANA-Sprint"
        elif empty != [tokenizer.bos_token]:
            what = f"the tokenizer makes {empty} of the empty prompt, and not BOS alone"
        if what is not None:
            hint = "Take transformer, text_encoder and tokenizer of the same model of SANA, with their configurations."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents (see `Model`)."""
        config, vae = parts["transformer"].config, parts["vae"].config
        scale, multiple = pixels_per_latent(vae), _multiple(config, vae)
        hint = f"Set model.resolution (resolution=) to a multiple of {multiple}, or [height, width]."
        size = config["sample_size"] * scale if resolution is None else resolution
        height, width = checked_size(size, multiple, where, hint)
        return config["in_channels"], height // scale, width // scale

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The cross-attention of each block; `attn1` is linear self-attention of the image."""
        return tuple(block.attn2 for block in self.transformer.transformer_blocks)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by, for the pipeline and for whole patches."""
        return _multiple(self.transformer.config, self.vae.config)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions in lower case, behind the instruction (see `Model`).

        The image attends to BOS and to the words. Its first position after BOS is the last token of the instruction, a
        space, if the first token of the caption does not begin with that space. There is no END: the last word, which
        Gemma computes from all others, stands in for it.
        """
        texts = [INSTRUCTION + caption.lower().strip() for caption in captions]
        return self._tokens(texts, len(self.tokenizer.encode(INSTRUCTION)) + LONGEST - 2)

    def _tokens(self, texts: Sequence[str], length: int) -> Tokens:
        given = self.tokenizer(
            list(texts),
            padding="max_length",
            padding_side="right",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        mask_BK = _attended(given.attention_mask)
        counts_B = mask_BK.sum(1) + 1
        return Tokens(given.input_ids, mask_BK, counts_B, counts_B - 2)

    def words(self, caption: str) -> list[int]:
        """Return the ids of a caption's words (see `Model`)."""
        tokens = self.tokenize([caption])
        words: list[int] = _attended(tokens.ids_BK)[0, 1 : int(tokens.counts_B) - 1].tolist()
        return words

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute hidden states [B, K, D] and the mask [B, K] (see `Model`).

        The hidden states of padding are zero, so that no distance depends on them: the mask hides them from the image.
        """
        ids_BN, mask_BK = to_device(tokens.ids_BK, self.device), to_device(tokens.mask_BK, self.device)
        mask_BN = pad(mask_BK, (ids_BN.shape[1] - LONGEST, 0), value=1)  # BOS and the instruction are no padding
        hidden_BND = self.text_encoder(ids_BN, attention_mask=mask_BN, use_cache=False)[0]
        hidden_BKD = _attended(hidden_BND).to(self.dtype)
        return Conditioning({HIDDEN: hidden_BKD * mask_BK[..., None], MASK: mask_BK}, tokens)

    def null_tokens(self) -> None:
        """Return None: no caption has the tokens of `null`, because all captions follow the instruction."""

    def null(self) -> Conditioning:
        """Encode the empty prompt without the instruction, as the pipeline does."""
        return self.embed(self._tokens([""], LONGEST))

    def schedule(self, steps: int) -> FlowSchedule:
        """Return the schedule of a run (see `Model`)."""
        return flow_schedule(self.scheduler_config, steps, patches=0, linear=False)  # no shift depends on the size

    def screen_schedule(self) -> FlowSchedule:
        """Return the noise levels whose SNRs are those of Stable Diffusion."""
        return screen_flow()

    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the transformer, and leave out the variances that it may predict (see `Model`)."""
        time_B = torch.full((len(latents_BCHW),), timestep, dtype=torch.float32, device=self.device)
        sample = self.transformer(
            latents_BCHW.to(self.dtype),
            timestep=time_B * self.transformer.config["timestep_scale"],
            **conditioning.tensors,
        )
        predicted_BCHW: Tensor = sample.sample[:, : latents_BCHW.shape[1]].float()
        return predicted_BCHW

    def pipeline(self) -> Any:
        """Make a SanaPipeline with Euler steps (see `Model`); call it with the arguments CALL."""
        scheduler = FlowMatchEulerDiscreteScheduler(**self.scheduler_config)
        return ready(SanaPipeline(**self.networks, tokenizer=self.tokenizer, scheduler=scheduler), self)


def _attended(tensor_BNX: Tensor) -> Tensor:
    """Return what belongs to the tokens that the image attends to: BOS and the last ones."""
    return torch.cat([tensor_BNX[:, :1], tensor_BNX[:, 1 - LONGEST :]], dim=1)


def _multiple(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    return lcm(SIDE, pixels_per_latent(vae) * transformer["patch_size"])
