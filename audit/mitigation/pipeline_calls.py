"""Follow the calls of a mitigated pipeline and of its UNet: which prompt is running, and what its forwards may see.

Only these calls are changed (`audit.attention.calls`). The UNet and its layers are looked up anew in each call of the
pipeline, and after each forward every cross-attention is checked to have been mitigated. Weights or layers that are
loaded, fused or compiled later are therefore mitigated too, or the call raises. Between calls, a hook on the UNet
refuses other callers.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel

from audit.attention.calls import unwatch_calls, watch_calls
from audit.attention.probe import cross_attention_layers
from audit.attention.seam import Seam, Slot
from audit.errors import AuditError, UsageError
from audit.models.prompts import Keep, Tokens, listed, negative_counts, prompt_counts, visible_positions, windows

# Shapes: B rows of the UNet (both guidance branches), P prompts, N images, W windows, K text positions, V of them
# visible, D text width, H heads, Q image queries.

Flagger = Callable[[list[str]], list[bool]]
# Processors that attend once per layer, with the queries and keys they were tested with (`audit.attention.seam`).
PROCESSORS = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
)
SUPPORTED = "Supported: Stable Diffusion 1.x and 2.x pipelines (UNet2DConditionModel + one CLIPTextModel)."


@dataclass(frozen=True)
class _Text:
    """What the forwards of a call need to know of its prompts: both guidance branches, the conditional one last."""

    images: int
    guided: bool
    length: int  # text positions before the tail is cut off
    visible_BV: Tensor
    scale_BV: Tensor
    masked: bool  # whether any position that is not cut off is masked in any row


@dataclass
class _Call:
    """A call of a pipeline. The owner is None if a mitigated UNet is to run unmitigated."""

    owner: Mitigation | None
    pipeline: DiffusionPipeline | None = None
    unet: UNet2DConditionModel | None = None
    called: Any = None  # the UNet, or the module that torch.compile made of it
    layers: list[Attention] = field(default_factory=list)
    text: _Text | None = None
    seam: _Rescale | None = None  # of the forward in progress
    forwards: int = 0
    token: Token[_Call | None] | None = None


_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)
_LOCKS: WeakKeyDictionary[nn.Module | None, threading.RLock] = WeakKeyDictionary()  # one forward at a time


class Mitigation:
    """The mitigation of one pipeline; watches the calls of its UNet."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        bos_scale: float,
        keep: Keep,
        tokens: Tokens | None,
        negative_tokens: Tokens | None,
        flag: Flagger | None,
    ) -> None:
        self._bos_scale, self._keep, self._flag = bos_scale, keep, flag
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
            call.text = self._text(call.pipeline, encoded[0], bound.arguments)
        return encoded

    def _text(self, pipeline: Any, hidden_NKD: Tensor, given: dict[str, Any]) -> _Text:
        images, length, _ = hidden_NKD.shape
        guided, each = bool(given["do_classifier_free_guidance"]), given["num_images_per_prompt"]
        window = min(length, pipeline.tokenizer.model_max_length)
        flagged_P = self._flagged(given, images // each)
        visible_PK = torch.ones(images // each, length, dtype=torch.bool)
        if self._keep != "all":
            with plainly():
                visible_PK = self._visible(pipeline, given, guided, length, window) | ~flagged_P[:, None]
        scale_PK = torch.ones(images // each, length, dtype=hidden_NKD.dtype)
        windows(length, window)  # checks that the position of each BOS is known
        scale_PK[:, ::window] = torch.where(flagged_P, self._bos_scale, 1.0).to(scale_PK)[:, None]
        end = int(visible_PK.any(0).nonzero().max()) + 1
        visible_NV, scale_NV = (part[:, :end].repeat_interleave(each, 0) for part in (visible_PK, scale_PK))
        if guided:
            visible_NV = visible_NV.repeat(2, 1)
            scale_NV = torch.cat([torch.ones_like(scale_NV), scale_NV])
        device, masked = hidden_NKD.device, not bool(visible_NV.all())
        return _Text(images, guided, length, visible_NV.to(device), scale_NV.to(device), masked)

    def _visible(self, pipeline: Any, given: dict[str, Any], guided: bool, length: int, window: int) -> Tensor:
        """Tell which text positions each prompt shows: [P, K]. A longer negative prompt counts for both branches."""
        counts_PW = prompt_counts(pipeline, given, self._tokens, length, window)
        if guided:
            negative_PW = negative_counts(pipeline, given, self._negative_tokens, length, window)
            counts_PW = torch.maximum(counts_PW, negative_PW)
        return visible_positions(counts_PW - int(self._keep == "words"), length, window)

    def _flagged(self, given: dict[str, Any], prompts: int) -> Tensor:
        if self._flag is None:
            return torch.ones(prompts, dtype=torch.bool)
        if given["prompt"] is None:
            raise UsageError("the call passes prompt_embeds, but only= screens prompts", hint="Pass prompt= instead.")
        with plainly():
            return torch.tensor(self._flag(listed(given["prompt"])))

    def before(self, unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Cut or mask the hidden states before a forward of the UNet, and start watching its layers.

        Called by `audit.attention.calls`.

        Args:
            unet: The UNet that is called.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments of the forward, with the hidden states cut or masked.

        Raises:
            AuditError: The forward cannot be mitigated.
        """
        call = _CALL.get()
        if call is None or call.owner is not self:
            return args, kwargs  # unmitigated, or another mitigated pipeline with the same UNet
        if call.text is None:
            _refuse()
        text = call.text
        hidden_BKD: Tensor = kwargs["encoder_hidden_states"] if len(args) < 3 else args[2]
        self._check_rows(call, text, hidden_BKD)
        rows, end = slice(-len(hidden_BKD), None), text.visible_BV.shape[1]
        if text.masked:
            if kwargs.get("encoder_attention_mask") is not None:
                what = "the pipeline masks text positions itself (encoder_attention_mask)"
                raise AuditError(what, where=type(call.pipeline).__name__, hint=SUPPORTED, kind="unsupported_model")
            kwargs = {**kwargs, "encoder_attention_mask": text.visible_BV[rows]}
        if end < text.length:
            hidden_BKD = hidden_BKD[:, :end].contiguous()
            own_mask = kwargs.get("encoder_attention_mask")
            if own_mask is not None:
                kwargs = {**kwargs, "encoder_attention_mask": own_mask[:, :end]}
            if len(args) < 3:
                kwargs = {**kwargs, "encoder_hidden_states": hidden_BKD}
            else:
                args = (*args[:2], hidden_BKD, *args[3:])
        _LOCKS.setdefault(call.unet, threading.RLock()).acquire()
        scale_B1V1 = text.scale_BV[rows][:, None, :, None] if self._bos_scale != 1 else None
        call.seam = _Rescale(call.layers, scale_B1V1).__enter__()
        return args, kwargs

    def after(self, unet: UNet2DConditionModel, _args: Any, _kwargs: Any, failed: bool) -> None:
        """Check after a forward of the UNet that every layer was mitigated (called by `audit.attention.calls`).

        Args:
            unet: The UNet that was called.
            failed: Whether the forward raised an exception.
        """
        call = _CALL.get()
        if call is None or call.owner is not self or call.seam is None:
            return
        seam, call.seam = call.seam, None
        seam.__exit__()
        _LOCKS[call.unet].release()
        if not failed:
            seam.check()
            call.forwards += 1

    def _check_rows(self, call: _Call, text: _Text, hidden_BKD: Tensor) -> None:
        """Raise AuditError unless the rows are both guidance branches, or the conditional branch alone."""
        guided = bool(getattr(call.pipeline, "do_classifier_free_guidance", text.guided))
        rows, length, _ = hidden_BKD.shape
        branches = 1 + (guided and text.guided)
        if rows != branches * text.images or length != text.length:
            what = (
                f"the UNet gets {rows} rows of {length} text positions for {text.images} images, {branches} guidance "
                f"branches and prompts of {text.length} positions"
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
            The arguments, unchanged.
        """
        unet = self.owner.follow(pipeline)
        call = _Call(self.owner, pipeline, unet, layers=cross_attention_layers(unet))
        call.token, call.called = _CALL.set(call), pipeline.unet
        watch_calls(call.called, self.owner)
        return args, kwargs

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


class _Rescale(Seam):
    """Multiplies the logits of text positions by multiplying their keys."""

    def __init__(self, layers: Sequence[Attention], scale_B1V1: Tensor | None) -> None:
        super().__init__(layers)
        self._scale_B1V1 = scale_B1V1

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHVD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return key_BHVD if self._scale_B1V1 is None else key_BHVD * self._scale_B1V1.to(key_BHVD.dtype)


@contextmanager
def plainly() -> Iterator[None]:
    """Run mitigated UNets as if they were not mitigated, inside the `with` block."""
    token = _CALL.set(_Call(None))
    try:
        yield
    finally:
        _CALL.reset(token)


def checked_unet(pipeline: DiffusionPipeline) -> UNet2DConditionModel:
    """Return the UNet of a pipeline, after checking that the pipeline's present parts can be mitigated.

    Raises:
        AuditError: A part of the pipeline, or an attention processor, is not supported.
    """
    kind = type(pipeline).__name__
    unet, encoder = getattr(pipeline, "unet", None), getattr(pipeline, "text_encoder", None)
    unet = getattr(unet, "_orig_mod", unet)  # unwrap torch.compile
    parts = ("text_encoder_2", "text_encoder_3", "controlnet")
    extra = [name for name in parts if getattr(pipeline, name, None) is not None]
    if not isinstance(unet, UNet2DConditionModel) or not isinstance(encoder, CLIPTextModel) or extra:
        found = " + ".join([type(unet).__name__, type(encoder).__name__, *extra])
        raise AuditError(f"{kind} has {found}", hint=SUPPORTED, kind="unsupported_model")
    for name, processor in unet.attn_processors.items():
        if type(processor).__name__ not in PROCESSORS:
            what = f"the attention processor {type(processor).__name__} cannot be mitigated"
            hint = f"Remove it (unload_ip_adapter, set_attn_processor). Supported: {', '.join(PROCESSORS)}."
            raise AuditError(what, where=name, hint=hint, kind="unsupported_model")
    if not cross_attention_layers(unet):
        what = "the UNet has no cross-attention layers"
        raise AuditError(what, where=kind, hint=SUPPORTED, kind="unsupported_model")
    return unet
