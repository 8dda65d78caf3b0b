"""Follow the calls of a mitigated pipeline and of its UNet: which prompt is running, and what its method changes.

Only these calls are changed (`audit.attention.calls`). The UNet and its layers are looked up anew in each call of the
pipeline, and after each forward every layer that the method changes is checked to have been changed. Weights or layers
that are loaded, fused or compiled later are therefore mitigated too, or the call raises. Between calls, a hook on the
UNet refuses other callers.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from audit.attention.calls import unwatch_calls, watch_calls
from audit.attention.seam import Seam
from audit.errors import AuditError, UsageError
from audit.mitigation.methods.delayed_guidance import unguided
from audit.mitigation.methods.method import Effect, Forward, Method, Prompts
from audit.mitigation.run_flag import RunFlag, RunFlagging
from audit.mitigation.supported import SUPPORTED, checked_unet
from audit.models.prompts import Tokens, listed

# Shapes: B rows of the UNet (both guidance branches, the conditional one last), P prompts, N images, K text positions,
# D text width; C, H and W of the latent.

UNET_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
Flagger = Callable[[list[str]], list[bool]]


@dataclass
class _Call:
    """A call of a pipeline. The owner is None if a mitigated UNet is to run unmitigated."""

    owner: Mitigation | None
    pipeline: Any = None
    unet: UNet2DConditionModel | None = None
    called: Any = None  # the UNet, or the module that torch.compile made of it
    prompts: Prompts | None = None
    effect: Effect | None = None
    on_N: Tensor | None = None  # which images are mitigated from the next forward on
    flagging: RunFlagging | None = None
    forward: Forward | None = None  # the latest one
    running: bool = False
    halved: bool = False  # whether the forward in progress has the unconditional rows alone
    seam: Seam | None = None  # of the forward in progress
    forwards: int = 0
    token: Token[_Call | None] | None = None


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)
_LOCKS: WeakKeyDictionary[nn.Module | None, threading.RLock] = WeakKeyDictionary()  # one forward at a time


class Mitigation:
    """The mitigation of one pipeline; watches the calls of its UNet.

    Args:
        pipeline: The pipeline.
        method: How to mitigate.
        tokens: Number of tokens of each prompt, if prompts are passed as embeddings.
        negative_tokens: The same for negative prompts.
        flag: Selects the prompts to mitigate, before the call; or the thresholds that select them during the run; or
            None to mitigate all.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        method: Method,
        tokens: Tokens | None,
        negative_tokens: Tokens | None,
        flag: Flagger | RunFlag | None,
    ) -> None:
        self.method, self._flag = method, flag
        self._tokens, self._negative_tokens = tokens, negative_tokens
        self._encode_prompt = pipeline.encode_prompt
        self._signature = inspect.signature(pipeline.encode_prompt)
        self._unet: UNet2DConditionModel | None = None
        self._handle: RemovableHandle | None = None
        self.calls = PipelineCalls(self)

    def install(self, pipeline: DiffusionPipeline) -> None:
        """Install the mitigation in a pipeline."""
        self.follow(pipeline)
        # The instance attribute hides the method of the class; deleting it restores the method.
        pipeline.encode_prompt = self.encode_prompt
        watch_calls(pipeline, self.calls)

    def follow(self, pipeline: DiffusionPipeline) -> UNet2DConditionModel:
        """Return the pipeline's current UNet, after making it refuse other callers."""
        unet = checked_unet(pipeline)
        if unet is not self._unet:
            self._let_go()
            self._unet, self._handle = unet, unet.register_forward_pre_hook(_refuse_others)
        return unet

    def remove(self, pipeline: DiffusionPipeline) -> None:
        """Remove the mitigation from a pipeline."""
        unwatch_calls(pipeline, self.calls)
        vars(pipeline).pop("encode_prompt", None)
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._unet = self._handle = None

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline's own `encode_prompt`; during a call, note which positions belong to the prompts."""
        encoded = self._encode_prompt(*args, **kwargs)
        call = _CALL.get()
        if call is not None and call.owner is self:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._begin(call, encoded[0], bound.arguments)
        return encoded

    def _begin(self, call: _Call, hidden_NKD: Tensor, given: dict[str, Any]) -> None:
        """Note the prompts of a call, which of them to mitigate, and what the method does to them."""
        guided = bool(given["do_classifier_free_guidance"])

        def encode(**other: Any) -> Tensor:
            encoded: Tensor = self._encode_prompt(**given | other)[0]
            return encoded

        if not guided and (self.method.needs_guidance or isinstance(self._flag, RunFlag)):
            what = "only=bands" if isinstance(self._flag, RunFlag) else self.method.name
            raise UsageError(f"{what} needs guidance, but this call has none", hint="Give a guidance_scale above 1.")
        for name in ("prompt", "negative_prompt"):
            if given.get(f"{name}_2") not in (None, given[name]):
                what = f"the call gives the second text encoder a {name}_2 of its own"
                raise UsageError(what, hint=f"Pass {name}= alone: it is given to both text encoders.")
        call.prompts = Prompts(call.pipeline, given, hidden_NKD, guided, self._tokens, self._negative_tokens, encode)
        with plainly():
            call.on_N = self._flagged(given, call.prompts)
            call.effect = self.method.begin(call.prompts)
        if isinstance(self._flag, RunFlag):
            call.flagging = self._flag.begin(call.pipeline, call.prompts.images)

    def _flagged(self, given: dict[str, Any], prompts: Prompts) -> Tensor:
        """Tell which images to mitigate from the first forward on."""
        if self._flag is None or isinstance(self._flag, RunFlag):
            return torch.full((prompts.images,), self._flag is None)
        if given["prompt"] is None:
            raise UsageError("the call passes prompt_embeds, but only= screens prompts", hint="Pass prompt= instead.")
        return torch.tensor(self._flag(listed(given["prompt"]))).repeat_interleave(prompts.each)

    def before(self, unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Change the arguments of a forward of the UNet, and start watching its layers.

        Called by `audit.attention.calls`.

        Args:
            unet: The UNet that is called.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments of the forward.

        Raises:
            AuditError: The forward cannot be mitigated.
        """
        call = _CALL.get()
        if call is None or call.owner is not self:
            return args, kwargs  # unmitigated, or another mitigated pipeline with the same UNet
        if call.effect is None or call.prompts is None or call.on_N is None:
            _refuse()
        given = dict(zip(UNET_ARGUMENTS, args, strict=False)) | kwargs
        self._check_rows(call, call.prompts, given["encoder_hidden_states"])
        forward = call.forward = self._forward(call, call.prompts, given)
        call.halved = call.flagging is None and call.effect.unconditional_only(forward)
        if call.halved:
            given = _halved(given, call.prompts.images)
            forward = replace(forward, guided=False, on_N=torch.zeros_like(forward.on_N))
        hidden_BKD, visible_BK = call.effect.text(forward, given["encoder_hidden_states"])
        if given.get("encoder_attention_mask") is not None:
            if visible_BK is not None:
                what = "the pipeline masks text positions itself (encoder_attention_mask)"
                raise AuditError(what, where=type(call.pipeline).__name__, hint=SUPPORTED, kind="unsupported_model")
            given["encoder_attention_mask"] = given["encoder_attention_mask"][:, : hidden_BKD.shape[1]]
        elif visible_BK is not None:
            given["encoder_attention_mask"] = visible_BK
        _LOCKS.setdefault(call.unet, threading.RLock()).acquire()
        call.running = True
        assert call.unet is not None
        call.seam = call.effect.seam(forward, call.unet)
        if call.seam is not None:
            call.seam.__enter__()
        kwargs = given | {"encoder_hidden_states": hidden_BKD}
        return (kwargs.pop("sample"), kwargs.pop("timestep")), kwargs

    def _forward(self, call: _Call, prompts: Prompts, given: dict[str, Any]) -> Forward:
        assert call.on_N is not None
        pipeline, rows = call.pipeline, len(given["encoder_hidden_states"])
        missing = [name for name in ("num_timesteps", "guidance_scale") if not hasattr(pipeline, name)]
        if missing and (self.method.needs_guidance or self.method.changes_latents or call.flagging):
            what = f"{type(pipeline).__name__} does not tell its {' and '.join(missing)}"
            hint = "Use another method (audit.Rescale), without only=bands."
            raise AuditError(what, where=self.method.name, hint=hint, kind="unsupported_model")
        return Forward(
            step=call.forwards,
            steps=int(getattr(pipeline, "num_timesteps", 0)),
            timestep=given["timestep"],
            latents_NCHW=given["sample"][: prompts.images],
            guided=rows == 2 * prompts.images,
            guidance_scale=float(getattr(pipeline, "guidance_scale", 1.0)),
            on_N=call.on_N,
        )

    def result(self, _unet: UNet2DConditionModel, output: Any) -> Any:
        """Change the output of a forward (called by `audit.attention.calls`).

        Args:
            output: The output.

        Returns:
            The output for the pipeline.
        """
        call = _CALL.get()
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

    def _newly_flagged(self, call: _Call, predicted_BCHW: Tensor) -> Tensor | None:
        if call.flagging is None or call.forward is None or not call.forward.guided:
            return None
        return call.flagging.new(call.forward.step, tuple(call.forward.latents_NCHW.shape[1:]), predicted_BCHW)

    def after(self, unet: UNet2DConditionModel, _args: Any, _kwargs: Any, failed: bool) -> None:
        """Check after a forward of the UNet that every layer was changed (called by `audit.attention.calls`).

        Args:
            unet: The UNet that was called.
            failed: Whether the forward raised an exception.
        """
        call = _CALL.get()
        if call is None or call.owner is not self or not call.running:
            return
        seam, call.seam, call.running = call.seam, None, False
        if seam is not None:
            seam.__exit__()
        _LOCKS[call.unet].release()
        if not failed:
            if seam is not None:
                seam.check()
            call.forwards += 1

    def _check_rows(self, call: _Call, prompts: Prompts, hidden_BKD: Tensor) -> None:
        """Raise AuditError unless the rows are both guidance branches, or the conditional branch alone."""
        guided = bool(getattr(call.pipeline, "do_classifier_free_guidance", prompts.guided))
        rows, length, _ = hidden_BKD.shape
        branches = 1 + (guided and prompts.guided)
        if rows != branches * prompts.images or length != prompts.length:
            what = (
                f"the UNet gets {rows} rows of {length} text positions for {prompts.images} images, {branches} "
                f"guidance branches and prompts of {prompts.length} positions"
            )
            raise AuditError(what, where=type(call.pipeline).__name__, hint=SUPPORTED, kind="unsupported_model")


class PipelineCalls:
    """Watches the calls of a mitigated pipeline (`audit.attention.calls`), to know which call is running."""

    def __init__(self, owner: Mitigation) -> None:
        self.owner = owner

    def before(self, pipeline: DiffusionPipeline, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note that a call of the pipeline begins, and watch its UNet.

        Args:
            pipeline: The pipeline that is called.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments. A method that changes latents does so in `callback_on_step_end`.
        """
        unet = self.owner.follow(pipeline)
        call = _Call(self.owner, pipeline, unet)
        if self.owner.method.changes_latents:
            kwargs = _with_latents(call, kwargs)
        call.token, call.called = _CALL.set(call), pipeline.unet
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
            AuditError: The call succeeded without running the UNet.
        """
        call = _CALL.get()
        assert call is not None
        assert call.token is not None
        _CALL.reset(call.token)
        unwatch_calls(call.called, self.owner)
        if not failed and not call.forwards:
            what = "the call ended, but its UNet was never seen"
            hint = (
                "Call mitigate_ before torch.compile(pipeline.unet), or compile in place with pipeline.unet.compile()."
            )
            raise AuditError(what, where=type(pipeline).__name__, hint=hint, kind="unsupported_model")


def _refuse_others(unet: nn.Module, _args: Any) -> None:
    """Refuse other callers of a mitigated UNet. A graph that was compiled earlier runs unmitigated for them."""
    if torch.compiler.is_compiling():
        return
    call = _CALL.get()
    if call is None or (call.owner is not None and call.unet is not unet):
        _refuse()


def _refuse() -> NoReturn:
    what = "this UNet is part of a mitigated pipeline, which has encoded no prompt for this forward"
    hint = "Call the pipeline, not its UNet, and mitigate every pipeline that shares the UNet (mitigate_)."
    raise UsageError(what, hint=hint)


def _halved(given: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the arguments of a guided forward for its first rows, which are the unconditional ones."""
    cut = {"sample", "encoder_hidden_states", "encoder_attention_mask", "timestep_cond", "added_cond_kwargs"}

    def first(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: first(part) for name, part in value.items()}
        return value[:rows] if isinstance(value, Tensor) and len(value) == 2 * rows else value

    return {name: first(value) if name in cut else value for name, value in given.items()}


def _with_latents(call: _Call, kwargs: dict[str, Any]) -> dict[str, Any]:
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


@contextmanager
def plainly() -> Iterator[None]:
    """Run mitigated UNets as if they were not mitigated, inside the `with` block."""
    token = _CALL.set(_Call(None))
    try:
        yield
    finally:
        _CALL.reset(token)
