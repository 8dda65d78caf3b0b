"""How the pipelines of a family encode prompts and hand them to the denoiser: all that mitigation knows of a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Gemma2Model, T5EncoderModel

from audit.attention.probe import cross_attention_layers
from audit.errors import AuditError
from audit.models.prompts import Window, whole_windows

# Shapes: N images, K text positions, D text width, P width of the pooled vector; B rows of the denoiser.

# Parts that a prompt or an image may enter by. Those that a family does not list must be missing.
PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "controlnet")
SUPPORTED = (
    "Mitigation supports Stable Diffusion 1.x, 2.x and XL (UNet2DConditionModel + CLIPTextModel), "
    "3 and 3.5, FLUX.1, PixArt and SANA."
)


@dataclass(frozen=True)
class Encoded:
    """What `encode_prompt` returns, one row per image.

    Attributes:
        hidden_NKD: Hidden states of the prompts.
        pooled_NP: Their pooled vectors, if the denoiser is given any.
        mask_NK: 1 at the positions that it may attend to, if the pipeline hides padding.
        negative_mask_NK: The same for the negative prompts.
    """

    hidden_NKD: Tensor
    pooled_NP: Tensor | None = None
    mask_NK: Tensor | None = None
    negative_mask_NK: Tensor | None = None


class Family(ABC):
    """A family of pipelines.

    Attributes:
        denoiser: The pipeline's attribute that holds the denoiser.
        network: Class of the denoiser.
        encoders: Class of each text encoder, by the pipeline's attribute.
        optional: Those of them that may be missing.
        processors: Processors that attend once per layer, with the queries and keys that the seam was tested with.
        latents: Name of the denoiser's argument for latents.
        guided: Whether guidance is classifier-free, so that there is an unconditional branch.
        joint: Whether image and text attend to each other; the processors then ignore masks of text positions.
        hides_padding: Whether the pipeline hides padding itself.
    """

    denoiser: ClassVar[str] = "transformer"
    network: ClassVar[type[nn.Module]]
    encoders: ClassVar[Mapping[str, type]]
    optional: ClassVar[tuple[str, ...]] = ()
    processors: ClassVar[tuple[str, ...]]
    latents: ClassVar[str] = "hidden_states"
    guided: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    hides_padding: ClassVar[bool] = False

    @abstractmethod
    def layers(self, denoiser: Any) -> Sequence[nn.Module]:
        """Return the layers in which the image attends to the text."""

    @abstractmethod
    def encoded(self, outputs: tuple[Any, ...]) -> Encoded:
        """Name the outputs of `encode_prompt`."""

    def tokenizer(self, pipeline: Any) -> Any:
        """Return the tokenizer of the first text position."""
        return pipeline.tokenizer

    def windows(self, pipeline: Any, length: int) -> list[Window]:
        """Return the windows of `length` text positions. Raises UsageError if they are not whole windows."""
        return [Window(self.tokenizer(pipeline), length)]

    def text_keys(self, count: int) -> slice:
        """Return where the layers have their `count` text keys, among all of their keys."""
        return slice(None)

    def has_pooled(self, denoiser: Any) -> bool:
        """Tell whether prompts also enter the denoiser by a pooled vector."""
        return False

    def with_pooled(self, given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the denoiser's arguments after changing their pooled vectors [B, P]."""
        return given | {"pooled_projections": change(given["pooled_projections"])}


class StableDiffusion(Family):
    """Stable Diffusion 1.x, 2.x and XL."""

    denoiser = "unet"
    network = UNet2DConditionModel
    encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    optional = ("text_encoder_2",)
    processors = (
        "AttnProcessor",
        "AttnProcessor2_0",
        "FusedAttnProcessor2_0",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
    )
    latents = "sample"

    def layers(self, denoiser: Any) -> Sequence[nn.Module]:
        """Return the cross-attention layers."""
        return cross_attention_layers(denoiser)

    def encoded(self, outputs: tuple[Any, ...]) -> Encoded:
        """Name the outputs: XL's third is the pooled vector."""
        return Encoded(outputs[0], outputs[2] if len(outputs) > 2 else None)

    def windows(self, pipeline: Any, length: int) -> list[Window]:
        """Return the windows of a long prompt, as compel and other tools make them."""
        window = Window(pipeline.tokenizer, min(length, pipeline.tokenizer.model_max_length))
        return [window] * whole_windows(length, window.length)

    def has_pooled(self, denoiser: Any) -> bool:
        """Tell whether the UNet is that of XL."""
        return bool(denoiser.config["addition_embed_type"] == "text_time")

    def with_pooled(self, given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Change the pooled vectors among the added conditions."""
        added = given["added_cond_kwargs"]
        return given | {"added_cond_kwargs": added | {"text_embeds": change(added["text_embeds"])}}


class PixArt(Family):
    """PixArt-Alpha and PixArt-Sigma: cross-attention to T5, whose padding the pipeline hides."""

    network = PixArtTransformer2DModel
    encoders: ClassVar = {"text_encoder": T5EncoderModel}
    processors = ("AttnProcessor2_0", "FusedAttnProcessor2_0")
    hides_padding = True

    def layers(self, denoiser: Any) -> Sequence[nn.Module]:
        """Return the cross-attention of each block; `attn1` is self-attention of the image."""
        return [block.attn2 for block in denoiser.transformer_blocks]

    def encoded(self, outputs: tuple[Any, ...]) -> Encoded:
        """Name the outputs: the prompts with their mask, then the negative prompts with theirs."""
        return Encoded(outputs[0], mask_NK=outputs[1], negative_mask_NK=outputs[3])


class Sana(PixArt):
    """SANA: cross-attention to Gemma 2, whose padding the pipeline hides; `attn1` is linear and attends to no text."""

    network = SanaTransformer2DModel
    encoders: ClassVar = {"text_encoder": Gemma2Model}
    processors = ("SanaAttnProcessor2_0", "SanaLinearAttnProcessor2_0")


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5: joint attention, image keys first, then those of CLIP, then those of T5."""

    network = SD3Transformer2DModel
    encoders: ClassVar = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    optional = ("text_encoder_3",)
    processors = ("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0")
    joint = True

    def layers(self, denoiser: Any) -> Sequence[nn.Module]:
        """Return the joint attention of each block; `attn2` of 3.5 medium is self-attention of the image."""
        return [block.attn for block in denoiser.transformer_blocks]

    def encoded(self, outputs: tuple[Any, ...]) -> Encoded:
        """Name the outputs: prompts, negative prompts, and the pooled vectors of both."""
        return Encoded(outputs[0], outputs[2])

    def windows(self, pipeline: Any, length: int) -> list[Window]:
        """Return CLIP's window, and T5's behind it, in which there is nothing if T5 is missing."""
        clip = Window(pipeline.tokenizer, min(length, pipeline.tokenizer.model_max_length))
        t5 = Window(pipeline.tokenizer_3 if pipeline.text_encoder_3 is not None else None, length - clip.length)
        return [clip, t5] if t5.length else [clip]

    def text_keys(self, count: int) -> slice:
        """Return the last keys."""
        return slice(-count, None)

    def has_pooled(self, denoiser: Any) -> bool:
        """Tell that CLIP's pooled vectors enter every block."""
        return True


class Flux(Family):
    """FLUX.1: joint attention, the keys of T5 first, then those of the image. CLIP gives the pooled vector only."""

    network = FluxTransformer2DModel
    encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    processors = ("FluxAttnProcessor",)
    guided = False
    joint = True

    def layers(self, denoiser: Any) -> Sequence[nn.Module]:
        """Return the attention of the double blocks, then of the single blocks."""
        return [block.attn for block in (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks)]

    def encoded(self, outputs: tuple[Any, ...]) -> Encoded:
        """Name the outputs: hidden states, pooled vectors, and ids of the text positions."""
        return Encoded(outputs[0], outputs[1])

    def tokenizer(self, pipeline: Any) -> Any:
        """Return T5's tokenizer."""
        return pipeline.tokenizer_2

    def text_keys(self, count: int) -> slice:
        """Return the first keys."""
        return slice(0, count)

    def has_pooled(self, denoiser: Any) -> bool:
        """Tell that CLIP's pooled vector enters every block."""
        return True


FAMILIES: tuple[Family, ...] = (StableDiffusion(), PixArt(), Sana(), StableDiffusion3(), Flux())


def supported(pipeline: DiffusionPipeline) -> tuple[Family, Any]:
    """Return the family of a pipeline and its denoiser, after checking that its present parts can be mitigated.

    Raises:
        AuditError: A part of the pipeline, or an attention processor, is not supported.
    """
    kind = type(pipeline).__name__
    denoisers = {name: getattr(pipeline, name, None) for name in ("unet", "transformer")}
    denoiser: Any = next((part for part in denoisers.values() if part is not None), None)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # unwrap torch.compile
    parts = {name: getattr(pipeline, name, None) for name in PARTS}
    family = next((family for family in FAMILIES if isinstance(denoiser, family.network)), None)
    wrong = [] if family is None else [name for name, part in parts.items() if not _fits(family, name, part)]
    if family is None or wrong:
        extra = [name for name in wrong if name != "text_encoder"]
        found = " + ".join([type(denoiser).__name__, type(parts["text_encoder"]).__name__, *extra])
        raise AuditError(f"{kind} has {found}", hint=SUPPORTED, kind="unsupported_model")
    for name, processor in denoiser.attn_processors.items():
        if type(processor).__name__ not in family.processors:
            what = f"the attention processor {type(processor).__name__} cannot be mitigated"
            hint = f"Remove it (unload_ip_adapter, set_attn_processor). Supported: {', '.join(family.processors)}."
            raise AuditError(what, where=name, hint=hint, kind="unsupported_model")
    if not family.layers(denoiser):
        what = "the denoiser has no layer that attends to the text"
        raise AuditError(what, where=kind, hint=SUPPORTED, kind="unsupported_model")
    return family, denoiser


def check_tells_guidance(pipeline: DiffusionPipeline, asking: str) -> None:
    """Raise AuditError if a pipeline does not tell its number of steps and its guidance scale.

    Args:
        pipeline: The pipeline.
        asking: Who needs to know.
    """
    missing = [name for name in ("num_timesteps", "guidance_scale") if not hasattr(type(pipeline), name)]
    if missing:
        what = f"{type(pipeline).__name__} does not tell its {' and '.join(missing)}"
        hint = "Use another method, such as audit.Dilute, without only=bands."
        raise AuditError(what, where=asking, hint=hint, kind="unsupported_model")


def _fits(family: Family, name: str, part: Any) -> bool:
    if part is None:
        return name not in family.encoders or name in family.optional
    return name in family.encoders and isinstance(part, family.encoders[name])
