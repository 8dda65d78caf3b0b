"""Follow the calls of a mitigated pipeline and of its denoiser: which prompt is running, what its method changes.

Only these calls are changed (`audit.attention.calls`). The denoiser and its layers are looked up anew in each call of
the pipeline, and after each forward every layer that the method changes is checked to have been changed. Weights or
layers that are loaded, fused or compiled later are therefore mitigated too, or the call raises. Between calls, a hook
on the denoiser refuses other callers.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from audit.attention.calls import unwatch_calls, watch_calls
from audit.errors import AuditError, UsageError
from audit.mitigation.arguments import HIDDEN, by_name, given_visible, halved
from audit.mitigation.call import CALL, LOCKS, Call, plainly, refuse, refuse_others
from audit.mitigation.families import SUPPORTED, Encoded, Family, supported
from audit.mitigation.methods.delayed_guidance import unguided
from audit.mitigation.methods.method import Forward, Method, Prompts, where_rows
from audit.mitigation.run_flag import RunFlag
from audit.models.prompts import Tokens, listed

# Shapes: B rows of the denoiser (both guidance branches, the conditional one last), N images, K text positions, V of
# them that the denoiser is given, D text width; C, H and W of the latent.

Flagger = Callable[[list[str]], list[bool]]


class Mitigation:
    """The mitigation of one pipeline; watches the calls of its denoiser.

    Args:
        pipeline: The pipeline.
        method: How to mitigate.
        tokens: Number of tokens of each prompt, if prompts are passed as embeddings.
        negative_tokens: The same for negative prompts.
        flag: Selects the prompts to mitigate, before the call; or the thresholds that select them during the run; or
            None to mitigate all.
        empty_pooled: Whether mitigated prompts enter by the pooled vector of the empty prompt.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        method: Method,
        tokens: Tokens | None,
        negative_tokens: Tokens | None,
        flag: Flagger | RunFlag | None,
        empty_pooled: bool = False,
    ) -> None:
        self.method, self._flag, self._empty_pooled = method, flag, empty_pooled
        self._tokens, self._negative_tokens = tokens, negative_tokens
        self._encode_prompt = pipeline.encode_prompt
        self._signature = inspect.signature(pipeline.encode_prompt)
        self._denoiser: nn.Module | None = None
        self._handle: RemovableHandle | None = None
        self.calls = PipelineCalls(self)

    def install(self, pipeline: DiffusionPipeline) -> None:
        """Install the mitigation in a pipeline."""
        self.follow(pipeline)
        # The instance attribute hides the method of the class; deleting it restores the method.
        pipeline.encode_prompt = self.encode_prompt
        watch_calls(pipeline, self.calls)

    def follow(self, pipeline: DiffusionPipeline) -> tuple[Family, Any]:
        """Return the family of the pipeline and its current denoiser, after making that refuse other callers."""
        family, denoiser = supported(pipeline)
        if denoiser is not self._denoiser:
            self._let_go()
            self._denoiser, self._handle = denoiser, denoiser.register_forward_pre_hook(refuse_others)
        return family, denoiser

    def remove(self, pipeline: DiffusionPipeline) -> None:
        """Remove the mitigation from a pipeline."""
        unwatch_calls(pipeline, self.calls)
        vars(pipeline).pop("encode_prompt", None)
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._denoiser = self._handle = None

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline's own `encode_prompt`; during a call, note which positions belong to the prompts."""
        encoded = self._encode_prompt(*args, **kwargs)
        call = CALL.get()
        if call is not None and call.owner is self:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._begin(call, call.family.encoded(encoded), bound.arguments)
        return encoded

    def _begin(self, call: Call, encoded: Encoded, given: dict[str, Any]) -> None:
        """Note the prompts of a call, which of them to mitigate, and what the method does to them."""
        if call.prompts is not None:
            what = "the call encodes prompts twice, such as FLUX a negative prompt (true_cfg_scale)"
            raise AuditError(what, where=type(call.pipeline).__name__, hint=SUPPORTED, kind="unsupported_model")
        guided = bool(given.get("do_classifier_free_guidance", False))

        def encode(**other: Any) -> Encoded:
            found: Encoded = call.family.encoded(self._encode_prompt(**given | other))
            return found

        if not guided and (self.method.needs_guidance or isinstance(self._flag, RunFlag)):
            what = "only=bands" if isinstance(self._flag, RunFlag) else self.method.name
            raise UsageError(f"{what} needs guidance, but this call has none", hint="Give a guidance_scale above 1.")
        for name in ("prompt", "negative_prompt"):
            for other in (f"{name}_2", f"{name}_3"):
                if given.get(other) not in (None, given.get(name)):
                    what = f"the call gives a text encoder a {other} of its own"
                    raise UsageError(what, hint=f"Pass {name}= alone: it is given to all text encoders.")
        call.prompts = Prompts(
            call.pipeline, call.family, given, encoded, guided, self._tokens, self._negative_tokens, encode
        )
        with plainly():
            call.on_N = self._flagged(given, call.prompts)
            call.effect = self.method.begin(call.prompts)
            if self._empty_pooled:
                call.pooled_1P = call.prompts.empty().pooled_NP
        if isinstance(self._flag, RunFlag):
            call.flagging = self._flag.begin(call.pipeline, call.prompts.images)

    def _flagged(self, given: dict[str, Any], prompts: Prompts) -> Tensor:
        """Tell which images to mitigate from the first forward on."""
        if self._flag is None or isinstance(self._flag, RunFlag):
            return torch.full((prompts.images,), self._flag is None)
        if given["prompt"] is None:
            raise UsageError("the call passes prompt_embeds, but only= screens prompts", hint="Pass prompt= instead.")
        return torch.tensor(self._flag(listed(given["prompt"]))).repeat_interleave(prompts.each)

    def before(self, _denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Change the arguments of a forward of the denoiser, and start watching its layers.

        Called by `audit.attention.calls`.

        Args:
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments of the forward.

        Raises:
            AuditError: The forward cannot be mitigated.
        """
        call = CALL.get()
        if call is None or call.owner is not self:
            return args, kwargs  # unmitigated, or another mitigated pipeline with the same denoiser
        if call.effect is None or call.prompts is None or call.on_N is None:
            refuse()
        given = by_name(call.denoiser, args, kwargs)
        self._check_rows(call, call.prompts, given[HIDDEN])
        forward = call.forward = self._forward(call, call.prompts, given)
        call.halved = call.flagging is None and call.effect.unconditional_only(forward)
        if call.halved:
            given = halved(given, call.prompts.images)
            forward = replace(forward, guided=False, on_N=torch.zeros_like(forward.on_N))
        if call.pooled_1P is not None:
            on_B = forward.conditional_B(call.pooled_1P.device)
            given = call.family.with_pooled(given, functools.partial(where_rows, on_B, call.pooled_1P))
        given[HIDDEN], visible_BK = call.effect.text(forward, given[HIDDEN])
        given, positions_V, hiding = given_visible(call.family, call.denoiser, given, visible_BK)
        changing = call.effect.seam(forward, call.denoiser, positions_V)
        LOCKS.setdefault(call.denoiser, threading.RLock()).acquire()
        call.running = True
        call.seams = tuple(seam for seam in (changing, hiding) if seam is not None)
        for seam in call.seams:
            seam.__enter__()
        return (given.pop(call.family.latents),), given

    def _forward(self, call: Call, prompts: Prompts, given: dict[str, Any]) -> Forward:
        assert call.on_N is not None
        pipeline, rows = call.pipeline, len(given[HIDDEN])
        return Forward(
            step=call.forwards,
            steps=int(getattr(pipeline, "num_timesteps", 0)),
            timestep=given["timestep"],
            latents_NCHW=given[call.family.latents][: prompts.images],
            guided=rows == 2 * prompts.images,
            guidance_scale=float(getattr(pipeline, "guidance_scale", 1.0)),
            on_N=call.on_N,
        )

    def result(self, _denoiser: nn.Module, output: Any) -> Any:
        """Change the output of a forward (called by `audit.attention.calls`).

        Args:
            output: The output.

        Returns:
            The output for the pipeline.
        """
        call = CALL.get()
        if call is None or call.owner is not self or call.forward is None or call.effect is None:
            return output
        changed = output[0]
        if call.halved:
            changed = torch.cat([changed, changed])
        newly_N = self._newly_flagged(call, changed)
        if newly_N is not None:
            call.on_N = call.forward.on_N | newly_N
            # The conditional prediction of this step is not mitigated yet, so it is not used.
            changed = unguided(changed, newly_N & ~call.forward.on_N)
            call.forward = replace(call.forward, on_N=call.on_N)
        changed = call.effect.prediction(call.forward, changed)
        if changed is output[0]:
            return output
        return (changed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=changed)

    def _newly_flagged(self, call: Call, predicted_BCHW: Tensor) -> Tensor | None:
        if call.flagging is None or call.forward is None or not call.forward.guided:
            return None
        return call.flagging.new(call.forward.step, tuple(call.forward.latents_NCHW.shape[1:]), predicted_BCHW)

    def after(self, _denoiser: nn.Module, _args: Any, _kwargs: Any, failed: bool) -> None:
        """Check after a forward of the denoiser that every layer was changed (called by `audit.attention.calls`).

        Args:
            failed: Whether the forward raised an exception.
        """
        call = CALL.get()
        if call is None or call.owner is not self or not call.running:
            return
        seams, call.seams, call.running = call.seams, (), False
        for seam in seams:
            seam.__exit__()
        LOCKS[call.denoiser].release()
        if not failed:
            for seam in seams:
                seam.check()
            call.forwards += 1

    def _check_rows(self, call: Call, prompts: Prompts, hidden_BKD: Tensor) -> None:
        """Raise AuditError unless the rows are both guidance branches, or the conditional branch alone."""
        guided = bool(getattr(call.pipeline, "do_classifier_free_guidance", prompts.guided))
        rows, length, _ = hidden_BKD.shape
        branches = 1 + (guided and prompts.guided)
        if rows != branches * prompts.images or length != prompts.length:
            what = (
                f"the denoiser gets {rows} rows of {length} text positions for {prompts.images} images, {branches} "
                f"guidance branches and prompts of {prompts.length} positions"
            )
            raise AuditError(what, where=type(call.pipeline).__name__, hint=SUPPORTED, kind="unsupported_model")


class PipelineCalls:
    """Watches the calls of a mitigated pipeline (`audit.attention.calls`), to know which call is running."""

    def __init__(self, owner: Mitigation) -> None:
        self.owner = owner

    def before(self, pipeline: DiffusionPipeline, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note that a call of the pipeline begins, and watch its denoiser.

        Args:
            pipeline: The pipeline that is called.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments. A method that changes latents does so in `callback_on_step_end`.
        """
        family, denoiser = self.owner.follow(pipeline)
        call = Call(self.owner, pipeline, family, denoiser)
        if self.owner.method.changes_latents:
            kwargs = _with_latents(call, kwargs)
        call.token, call.called = CALL.set(call), getattr(pipeline, family.denoiser)
        watch_calls(call.called, self.owner)
        return args, kwargs

    def result(self, _pipeline: DiffusionPipeline, output: Any) -> Any:
        """Leave the output of a call unchanged.

        Args:
            output: The output.
        """
        return output

    def after(self, pipeline: DiffusionPipeline, _args: Any, _kwargs: Any, failed: bool) -> None:
        """Note that the call ended.

        Args:
            pipeline: The pipeline that was called.
            failed: Whether the call raised an exception.

        Raises:
            AuditError: The call succeeded without running the denoiser.
        """
        call = CALL.get()
        assert call is not None
        assert call.token is not None
        CALL.reset(call.token)
        unwatch_calls(call.called, self.owner)
        if not failed and not call.forwards:
            what, name = "the call ended, but its denoiser was never seen", f"pipeline.{call.family.denoiser}"
            hint = f"Call mitigate_ before torch.compile({name}), or compile in place with {name}.compile()."
            raise AuditError(what, where=type(pipeline).__name__, hint=hint, kind="unsupported_model")


def _with_latents(call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with a callback that lets the method change the latents, before the user's own."""
    own = kwargs.get("callback_on_step_end")
    wanted = getattr(own, "tensor_inputs", None) or kwargs.get("callback_on_step_end_tensor_inputs", ["latents"])

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert call.effect is not None
        assert call.forward is not None
        changed = {"latents": call.effect.latents(call.forward, tensors["latents"])}
        if own is None:
            return changed
        given = {name: (tensors | changed)[name] for name in wanted}
        return changed | own(pipeline, step, timestep, given)

    names = list(dict.fromkeys(["latents", *wanted]))
    return kwargs | {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
