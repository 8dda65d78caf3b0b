"""Mitigate while serving: mask the tail of the prompt and rescale the first key (arXiv 2403.11052, section 5).

To mask a tail of text positions, the hidden states are sliced before the UNet sees them. To multiply the logit of a
position, its key is multiplied at the seam (`audit.attention.seam`). Attention therefore stays fused, its processor
stays in place, and no attention matrix is built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from audit.attention.calls import watchers_of
from audit.calibration.calibration import Calibration
from audit.errors import AuditError, UsageError
from audit.mitigation.pipeline_calls import SUPPORTED, Flagger, Mitigation, PipelineCalls, checked_unet
from audit.models.model import Model
from audit.models.prompts import Keep, Tokens
from audit.scoring.screening import screen

KEEP = ("eos", "words", "all")
# Arguments that `encode_prompt` must have.
TOLD = {"prompt", "prompt_embeds", "negative_prompt", "negative_prompt_embeds", "num_images_per_prompt"}
TOLD |= {"device", "do_classifier_free_guidance"}


@contextmanager
def mitigated(
    pipeline: DiffusionPipeline,
    bos_scale: float = 1.25,
    keep: Keep = "eos",
    prompt_tokens: Tokens | None = None,
    negative_prompt_tokens: Tokens | None = None,
    only: Calibration | None = None,
    max_p: float = 0.01,
) -> Iterator[None]:
    """Mitigate every call of `pipeline` inside the `with` block; leave no trace afterwards, even after an exception.

    Args:
        pipeline: As for `mitigate_`.
        bos_scale: As for `mitigate_`.
        keep: As for `mitigate_`.
        prompt_tokens: As for `mitigate_`.
        negative_prompt_tokens: As for `mitigate_`.
        only: As for `mitigate_`.
        max_p: As for `mitigate_`.

    Yields:
        Nothing: the pipeline is mitigated in place.

    Raises:
        UsageError | AuditError: As `mitigate_`.
    """
    mitigate_(pipeline, bos_scale, keep, prompt_tokens, negative_prompt_tokens, only, max_p)
    try:
        yield
    finally:
        unmitigate_(pipeline)


def mitigate_(
    pipeline: DiffusionPipeline,
    bos_scale: float = 1.25,
    keep: Keep = "eos",
    prompt_tokens: Tokens | None = None,
    negative_prompt_tokens: Tokens | None = None,
    only: Calibration | None = None,
    max_p: float = 0.01,
) -> None:
    """Install mitigation in a diffusers pipeline, until `unmitigate_` is called (arXiv 2403.11052, section 5).

    Args:
        pipeline: The pipeline. Other pipelines that share its UNet refuse to run until they are mitigated too.
        bos_scale: Factor of the logit of the first text position of each window, in the conditional branch only; 1
            changes nothing.
        keep: Text positions that cross-attention may see: "eos" up to EOS, "words" up to the last word, "all".
        prompt_tokens: Number of tokens of each prompt, with BOS and EOS. Needed if prompts are passed as
            `prompt_embeds`. One number for all prompts, a list of numbers, or, for prompts of several 77-token windows,
            a list with one number per window for each prompt.
        negative_prompt_tokens: The same for negative prompts. Needed if they are passed as `negative_prompt_embeds`,
            unless those are of the empty prompt.
        only: Mitigate only prompts to which this calibration gives a `p_unseen` of at most `max_p`. Each call first
            screens its prompts on the noise of the calibration's seeds: one forward per prompt for `noise_magnitude`
            and `attention_profile`, eight for `profile`. The pipeline must come from `Model.pipeline()`, whose weights
            are known, and prompts must be passed as text.
        max_p: See `only`.

    Raises:
        UsageError: An argument is invalid. A call of the pipeline raises it for embeddings of unknown length, unless
            keep is "all".
        AuditError: The pipeline, an attention processor or the text encoder is not supported. A call of the pipeline
            raises it if any cross-attention in any forward was not mitigated.
    """
    check_setting(bos_scale, keep)
    _check(pipeline)
    flag = _flagger(pipeline, only, max_p)
    Mitigation(pipeline, bos_scale, keep, prompt_tokens, negative_prompt_tokens, flag).install(pipeline)


def unmitigate_(pipeline: DiffusionPipeline) -> None:
    """Remove the mitigation from a pipeline.

    Raises:
        UsageError: The pipeline is not mitigated.
    """
    installed = _installed(pipeline)
    if installed is None:
        raise UsageError("this pipeline is not mitigated", hint="Call mitigate_(pipeline) first.")
    installed.remove(pipeline)


def check_setting(bos_scale: float, keep: str) -> None:
    """Raise UsageError if `mitigate_` does not accept these arguments."""
    if not (math.isfinite(bos_scale) and bos_scale >= 0):
        raise UsageError(f"bos_scale is {bos_scale}", hint="Give a finite number, 0 or more; the paper's is 1.25.")
    if keep not in KEEP:
        raise UsageError(f"keep is {keep!r}", hint=f"Give one of: {', '.join(KEEP)}.")


def _flagger(pipeline: DiffusionPipeline, only: Calibration | None, max_p: float) -> Flagger | None:
    """Return a function that selects the prompts to mitigate: those that `only` scores unlike control captions."""
    if only is None:
        return None
    if not 0 < max_p <= 1:
        raise UsageError(f"max_p is {max_p}", hint="Give a number from 0 (excluded) to 1, usually 0.01.")
    if only.withheld is not None:
        what = f"only= needs p-values, but this calibration withholds them: {only.withheld}"
        raise UsageError(what, hint="Calibrate with control captions that are like the dataset.")
    model: Model | None = getattr(pipeline, "audited", None)
    if model is None:
        what = "only= cannot check that the calibration is valid for the weights of this pipeline"
        raise UsageError(what, hint="Create the pipeline with audit.load_model(path).pipeline().")

    def flag(prompts: list[str]) -> list[bool]:
        table = screen(model, list(dict.fromkeys(prompts)), seeds=only.context["seeds"], detectors=[only.detector])
        scores = only.score(table)
        p_of = dict(zip(scores["caption"].to_pylist(), scores["p_unseen"].to_pylist(), strict=True))
        return [p_of.get(prompt, 0.0) <= max_p for prompt in prompts]  # mitigate a prompt that cannot be scored

    return flag


def _installed(pipeline: DiffusionPipeline) -> Mitigation | None:
    return next((calls.owner for calls in watchers_of(pipeline) if isinstance(calls, PipelineCalls)), None)


def _check(pipeline: DiffusionPipeline) -> None:
    """Raise an error that names the part of the pipeline that cannot be mitigated, if there is one."""
    kind = type(pipeline).__name__
    if _installed(pipeline) is not None:
        raise UsageError("this pipeline is already mitigated", hint="Call unmitigate_(pipeline) first.")
    if isinstance(getattr(pipeline, "unet", None), torch._dynamo.OptimizedModule):
        hint = "Call mitigate_ before torch.compile, or compile in place with pipeline.unet.compile()."
        raise AuditError("the UNet is already compiled", where=kind, hint=hint)
    checked_unet(pipeline)
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is None or not set(inspect.signature(encode).parameters) >= TOLD:
        what = f"{kind} does not encode its prompts with encode_prompt as Stable Diffusion pipelines do"
        hint = SUPPORTED + " Text to image, image to image and inpainting; InstructPix2Pix is not one of them."
        raise AuditError(what, hint=hint, kind="unsupported_model")
    tokenizer = pipeline.tokenizer
    if tokenizer.bos_token_id is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        what = "the tokenizer does not put BOS first, but BOS is the position that is rescaled"
        raise AuditError(what, where=kind, hint=SUPPORTED, kind="unsupported_model")
