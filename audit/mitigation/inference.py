"""Mitigate while serving: install a method in a diffusers pipeline (`audit.mitigation.methods`).

Attention stays fused, its processor stays in place, and no attention matrix outlives its layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from audit.attention.calls import watchers_of
from audit.calibration.calibration import Calibration
from audit.calibration.screening import screen_as
from audit.errors import AuditError, UsageError
from audit.mitigation.families import SUPPORTED, check_tells_guidance, supported
from audit.mitigation.methods.bands import RunBands
from audit.mitigation.methods.dilute import Dilute
from audit.mitigation.methods.method import Method
from audit.mitigation.pipeline_calls import Flagger, Mitigation, PipelineCalls
from audit.mitigation.run_flag import RunFlag
from audit.models.model import Model
from audit.models.prompts import Tokens
from audit.scoring.screening import Unconditional

DEFAULT = Dilute()  # docs/decisions/0030-default-mitigation.md
MAX_P = 0.1
# Arguments that `encode_prompt` must have, and those that it has in families with an unconditional branch.
TOLD = {"prompt", "prompt_embeds", "num_images_per_prompt", "device"}
TOLD_GUIDED = {"negative_prompt", "negative_prompt_embeds", "do_classifier_free_guidance"}


@contextmanager
def mitigated(
    pipeline: DiffusionPipeline,
    method: Method = DEFAULT,
    *,
    only: Calibration | RunBands | None = None,
    max_p: float = MAX_P,
    prompt_tokens: Tokens | None = None,
    negative_prompt_tokens: Tokens | None = None,
    empty_pooled: bool = False,
) -> Iterator[None]:
    """Mitigate every call of `pipeline` inside the `with` block; leave no trace afterwards, even after an exception.

    Args:
        pipeline: As for `mitigate_`.
        method: As for `mitigate_`.
        only: As for `mitigate_`.
        max_p: As for `mitigate_`.
        prompt_tokens: As for `mitigate_`.
        negative_prompt_tokens: As for `mitigate_`.
        empty_pooled: As for `mitigate_`.

    Yields:
        Nothing: the pipeline is mitigated in place.

    Raises:
        UsageError | AuditError: As `mitigate_`.
    """
    mitigate_(
        pipeline,
        method,
        only=only,
        max_p=max_p,
        prompt_tokens=prompt_tokens,
        negative_prompt_tokens=negative_prompt_tokens,
        empty_pooled=empty_pooled,
    )
    try:
        yield
    finally:
        unmitigate_(pipeline)


def mitigate_(
    pipeline: DiffusionPipeline,
    method: Method = DEFAULT,
    *,
    only: Calibration | RunBands | None = None,
    max_p: float = MAX_P,
    prompt_tokens: Tokens | None = None,
    negative_prompt_tokens: Tokens | None = None,
    empty_pooled: bool = False,
) -> None:
    """Install mitigation in a diffusers pipeline, until `unmitigate_` is called.

    Args:
        pipeline: The pipeline. Other pipelines that share its denoiser refuse to run until they are mitigated too.
        method: How to mitigate: `audit.Dilute(share=0.4)` (the default), `audit.Rescale` (arXiv 2403.11052),
            `audit.Padding`, `audit.Attenuate`, `audit.Stabilise`, `audit.DelayedGuidance` or `audit.WeakGuidance`.
        only: Mitigate only flagged images. With a calibration, prompts to which it gives a `p_unseen` of at most
            `max_p`: each call first screens its prompts on the noise of the calibration's seeds, at its resolution (one
            forward per prompt for `caption_response`, eight for `profile`), and prompts must be passed as text. The
            first call also runs the forwards without a prompt.
            With bands (`audit.fit_run_bands`), images whose own run differs from that of control captions in its first
            steps, which costs nothing (`audit.mitigation.run_flag`). Either way the pipeline must come from
            `Model.pipeline()`, whose weights are known.
        max_p: See `only`. With bands, the fraction of control captions that may be flagged.
        prompt_tokens: Number of tokens of each prompt, with BOS and EOS. `Rescale` and `Padding` need it if prompts are
            passed as `prompt_embeds`. One number for all prompts, a list of numbers, or, for prompts of several
            windows (of 77 tokens each, or CLIP's and T5's of Stable Diffusion 3), a list with one number per window for
            each prompt.
        negative_prompt_tokens: The same for negative prompts. Needed if they are passed as `negative_prompt_embeds`,
            unless those are of the empty prompt.
        empty_pooled: Whether mitigated images get the pooled vector of the empty prompt. In Stable Diffusion XL, 3 and
            3.5 and FLUX.1, the prompt also enters the denoiser by a pooled vector. No method changes it, and nothing
            that is done to the embeddings of the prompt or to the attention to them stops what enters by it.

    Raises:
        UsageError: An argument is invalid. A call of the pipeline raises it for embeddings of unknown length, if the
            method needs the length.
        AuditError: The pipeline, an attention processor or the text encoder is not supported. A call of the pipeline
            raises it if any layer in any forward was not mitigated.
    """
    if not isinstance(method, Method):
        raise UsageError(f"the method is {method!r}", hint='Give an instance, such as audit.Rescale(keep="eos").')
    if _installed(pipeline) is not None:
        raise UsageError("this pipeline is already mitigated", hint="Call unmitigate_(pipeline) first.")
    check_mitigation(pipeline, method, empty_pooled)
    method.check_weights(pipeline)
    flag = _flag(pipeline, only, max_p)
    Mitigation(pipeline, method, prompt_tokens, negative_prompt_tokens, flag, empty_pooled).install(pipeline)


def unmitigate_(pipeline: DiffusionPipeline) -> None:
    """Remove the mitigation from a pipeline.

    Raises:
        UsageError: The pipeline is not mitigated.
    """
    installed = _installed(pipeline)
    if installed is None:
        raise UsageError("this pipeline is not mitigated", hint="Call mitigate_(pipeline) first.")
    installed.remove(pipeline)


def _flag(pipeline: DiffusionPipeline, only: Calibration | RunBands | None, max_p: float) -> Flagger | RunFlag | None:
    """Return what selects the images to mitigate: those that `only` finds unlike control captions."""
    if only is None:
        return None
    if not 0 < max_p <= 1:
        raise UsageError(f"max_p is {max_p}", hint="Give a number from 0 (excluded) to 1, usually from 0.01 to 0.1.")
    if isinstance(only, RunBands):
        check_tells_guidance(pipeline, "only=bands")
        only.check_weights(pipeline)
        return RunFlag(only, max_p)
    if only.withheld is not None:
        what = f"only= needs p-values, but this calibration withholds them: {only.withheld}"
        raise UsageError(what, hint="Calibrate with control captions that are like the dataset.")
    model: Model | None = getattr(pipeline, "audited", None)
    if model is None:
        what = "only= cannot check that the calibration is valid for the weights of this pipeline"
        raise UsageError(what, hint="Create the pipeline with audit.load_model(path).pipeline().")

    unconditional: Unconditional = {}

    def flag(prompts: list[str]) -> list[bool]:
        scores = only.score(screen_as(only, model, list(dict.fromkeys(prompts)), unconditional=unconditional))
        p_of = dict(zip(scores["caption"].to_pylist(), scores["p_unseen"].to_pylist(), strict=True))
        return [p_of.get(prompt, 0.0) <= max_p for prompt in prompts]  # mitigate a prompt that cannot be scored

    return flag


def _installed(pipeline: DiffusionPipeline) -> Mitigation | None:
    return next((calls.owner for calls in watchers_of(pipeline) if isinstance(calls, PipelineCalls)), None)


def check_mitigation(pipeline: DiffusionPipeline, method: Method, empty_pooled: bool = False) -> None:
    """Check that pipelines of this kind can be mitigated by a method, whatever their weights.

    Args:
        pipeline: The pipeline; its weights are not needed.
        method: As for `mitigate_`.
        empty_pooled: As for `mitigate_`.

    Raises:
        UsageError: `empty_pooled` without a pooled vector.
        AuditError: Names the part of the pipeline that cannot be mitigated, or why the method has no meaning for it.
    """
    kind = type(pipeline).__name__
    family, denoiser = supported(pipeline)
    if isinstance(getattr(pipeline, family.denoiser), torch._dynamo.OptimizedModule):
        hint = f"Call mitigate_ before torch.compile, or compile in place with pipeline.{family.denoiser}.compile()."
        raise AuditError("the denoiser is already compiled", where=kind, hint=hint)
    if empty_pooled and not family.has_pooled(denoiser):
        what = "empty_pooled=True, but the prompt enters this denoiser by no pooled vector"
        raise UsageError(what, where=kind, hint="Leave empty_pooled out.")
    encode, told = getattr(pipeline, "encode_prompt", None), TOLD | (TOLD_GUIDED if family.guided else set())
    if encode is None or not set(inspect.signature(encode).parameters) >= told:
        what = f"{kind} does not encode its prompts with encode_prompt as the pipelines of its family do"
        hint = SUPPORTED + " Text to image, image to image and inpainting; InstructPix2Pix is not one of them."
        raise AuditError(what, hint=hint, kind="unsupported_model")
    method.check(pipeline)
