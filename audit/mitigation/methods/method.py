"""What a mitigation method is: settings (`Method`), and what it does to the forwards of one call (`Effect`).

A method is a frozen dataclass of settings. For each call of the pipeline, `Method.begin` returns an `Effect`. The
effect can change four things, and leaves unchanged what it does not override:

- `text`: the hidden states of the prompts before a forward of the denoiser, and which of their positions are visible;
- `seam`: the keys of attention layers during the forward;
- `prediction`: the output of the denoiser;
- `latents`: the latents after the step of the scheduler.

Only the images of `Forward.on_N` may be changed, each independently of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from audit.attention.seam import Seam
from audit.errors import AuditError
from audit.mitigation.families import Encoded, Family, check_tells_guidance, supported
from audit.models.prompts import Tokens, Window, negative_counts, prompt_counts, whole_windows

# Shapes: B rows of the denoiser (the unconditional rows, if any, before the conditional ones), P prompts, N images,
# W windows, K text positions, V of them that the denoiser is given, D text width; C, H and W of the latent.


@dataclass(frozen=True)
class Prompts:
    """The prompts of one call, as the pipeline encoded them.

    Attributes:
        pipeline: The pipeline.
        family: Its family.
        given: The arguments of its `encode_prompt`.
        encoded: What `encode_prompt` returned.
        guided: Whether the call uses classifier-free guidance.
        tokens: Number of tokens of each prompt, if the user gave them.
        negative_tokens: The same for negative prompts.
        encode: Encodes with the pipeline's own `encode_prompt`: takes arguments that replace those of `given`.
    """

    pipeline: Any
    family: Family
    given: dict[str, Any]
    encoded: Encoded
    guided: bool
    tokens: Tokens | None
    negative_tokens: Tokens | None
    encode: Callable[..., Encoded]

    @property
    def images(self) -> int:
        """Number of images of the call."""
        return len(self.encoded.hidden_NKD)

    @property
    def each(self) -> int:
        """Number of images per prompt."""
        return int(self.given["num_images_per_prompt"])

    @property
    def length(self) -> int:
        """Number of text positions."""
        return self.encoded.hidden_NKD.shape[1]

    @property
    def windows(self) -> list[Window]:
        """The windows of the prompts. Raises UsageError if the hidden states are not whole windows."""
        return self.family.windows(self.pipeline, self.length)

    def empty(self) -> Encoded:
        """Encode the empty prompt, in one row."""
        changes: dict[str, Any] = {"prompt": "", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        changes |= dict.fromkeys(("prompt_2", "prompt_3", "prompt_embeds", "pooled_prompt_embeds"))
        return self.encode(**{name: value for name, value in changes.items() if name in self.given})

    def empty_1KD(self) -> Tensor:
        """Encode the empty prompt, once per window of a long prompt: hidden states, [1, K, D].

        Where the pipeline hides padding, END takes its place, since the denoiser never sees hidden states of padding.
        """
        empty = self.empty()
        hidden_1KD = empty.hidden_NKD
        if empty.mask_NK is not None:
            last = int(empty.mask_NK.sum()) - 1
            hidden_1KD = hidden_1KD[:, torch.arange(hidden_1KD.shape[1]).clamp(max=last)]
        return hidden_1KD.repeat(1, whole_windows(self.length, hidden_1KD.shape[1]), 1)[:, : self.length]

    def counts_NW(self, negative: bool = False) -> Tensor:
        """Count the tokens of each image's prompt in each window, with BOS and EOS, on the CPU.

        Args:
            negative: If the negative prompt is longer, count its tokens instead.

        Returns:
            The counts: [N, W].

        Raises:
            UsageError: The counts are unknown, because the call passes embeddings.
        """
        negative = negative and self.guided
        if self.encoded.mask_NK is not None:
            masks = [self.encoded.mask_NK, *([self.encoded.negative_mask_NK] if negative else [])]
            return torch.stack([mask_NK.sum(1).cpu() for mask_NK in masks if mask_NK is not None]).amax(0)[:, None]
        counts_PW = prompt_counts(self.pipeline, self.given, self.tokens, self.windows)
        if negative:
            more_PW = negative_counts(self.pipeline, self.given, self.negative_tokens, self.windows, self.empty_1KD)
            counts_PW = torch.maximum(counts_PW, more_PW)
        return counts_PW.repeat_interleave(self.each, 0)


@dataclass(frozen=True)
class Forward:
    """One forward of the denoiser.

    Attributes:
        step: Its number in the call, from 0.
        steps: Number of forwards of the call.
        timestep: The training timestep.
        latents_NCHW: The noisy latents of the images, as the denoiser gets them (those of FLUX are packed).
        guided: Whether the rows are both guidance branches, and not the conditional one alone.
        guidance_scale: The scale of classifier-free guidance.
        on_N: Which images to mitigate, on the CPU.
    """

    step: int
    steps: int
    timestep: Tensor | float
    latents_NCHW: Tensor
    guided: bool
    guidance_scale: float
    on_N: Tensor

    def conditional_B(self, device: torch.device) -> Tensor:
        """Tell which rows are the conditional ones of images to mitigate."""
        on_B = torch.cat([torch.zeros_like(self.on_N), self.on_N]) if self.guided else self.on_N
        return on_B.to(device)


class Effect:
    """What a method does to the forwards of one call. Every hook leaves its input unchanged by default."""

    def unconditional_only(self, forward: Forward) -> bool:
        """Tell whether the images need only the unconditional rows of this forward, which halves its cost."""
        return False

    def text(self, forward: Forward, hidden_BKD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Change the hidden states of the prompts.

        Args:
            forward: The forward that is about to run.
            hidden_BKD: Hidden states of its rows.

        Returns:
            The hidden states to use, and which of their positions are visible, [B, K] bool on the CPU, or None for all.
            The denoiser is not given positions that no row may see.
        """
        return hidden_BKD, None

    def seam(self, forward: Forward, denoiser: Any, positions_V: Tensor) -> Seam | None:
        """Return a seam that changes attention layers in this forward, or None.

        Args:
            forward: The forward that is about to run.
            denoiser: The denoiser.
            positions_V: The text positions that it is given, of those of the prompts.
        """
        return None

    def prediction(self, forward: Forward, predicted_BCHW: Tensor) -> Tensor:
        """Change the output of the denoiser.

        Args:
            forward: The forward that ran.
            predicted_BCHW: Its output, which must not be modified in place.

        Returns:
            The output to use.
        """
        return predicted_BCHW

    def latents(self, forward: Forward, latents_NCHW: Tensor) -> Tensor:
        """Change the latents after the step of the scheduler; called if the method says `changes_latents`.

        Args:
            forward: The forward of the step.
            latents_NCHW: The latents after the step.

        Returns:
            The latents to use.
        """
        return latents_NCHW


class Method:
    """A mitigation method with its settings. Subclasses are frozen dataclasses.

    Attributes:
        name: Its name in tables and on the command line.
        changes_latents: Whether its effects override `Effect.latents`.
        needs_guidance: Whether it does nothing without classifier-free guidance. Calls without it raise an error.
        needs_unet: Why it has no meaning without a UNet; empty if it has.
    """

    name: ClassVar[str]
    changes_latents: ClassVar[bool] = False
    needs_guidance: ClassVar[bool] = False
    needs_unet: ClassVar[str] = ""

    def check(self, pipeline: Any) -> None:
        """Raise AuditError if the method cannot be applied to pipelines of this kind, whatever their weights."""
        family, denoiser = supported(pipeline)
        what = None
        if self.needs_unet and not isinstance(denoiser, UNet2DConditionModel):
            what = f"{self.name} {self.needs_unet}, and the denoiser is {type(denoiser).__name__}"
        elif self.needs_guidance and not family.guided:
            what = f"{self.name} changes guidance, and this pipeline has no unconditional branch"
        if what is not None:
            hint = "Use another method, such as audit.Dilute."
            raise AuditError(what, where=type(pipeline).__name__, hint=hint, kind="unsupported_model")
        if self.needs_guidance or self.changes_latents:
            check_tells_guidance(pipeline, self.name)

    def check_weights(self, pipeline: Any) -> None:
        """Raise UsageError if the settings are for other weights than those of a pipeline."""

    def begin(self, prompts: Prompts) -> Effect:
        """Return what the method does in one call.

        Args:
            prompts: The prompts of the call.

        Raises:
            UsageError: The method cannot be applied to these prompts.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in values.items())})"


def where_rows(on_B: Tensor, changed: Tensor, unchanged: Tensor) -> Tensor:
    """Take the rows of `changed` that are on, and the other rows of `unchanged`."""
    return torch.where(on_B.view(-1, *[1] * (changed.ndim - 1)), changed, unchanged)
