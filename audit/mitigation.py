"""Mitigation while serving (arXiv 2403.11052, section 5): the tail of the prompt masked, the first key rescaled.

Masking a tail of text positions is slicing the hidden states that every cross-attention projects to keys and values;
multiplying the logit of a position is multiplying its key. So the attention stays fused, its processor stays whoever's
it is, and no attention matrix is built: a hook on the UNet and the `to_k` and `to_v` of each layer do it all. Hidden
states are the same in every step of a call, so they are projected once a call, not once a step: that pays for the rest.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModel

from audit.attention import cross_attention_layers
from audit.calibration import Calibration
from audit.errors import AuditError, UsageError
from audit.model import Model
from audit.screening import screen

# Shapes: B rows of the UNet (both guidance branches), N images of a call, K text positions, D text width, HD of keys.

Keep = Literal["eos", "words", "all"]
KEEP = ("eos", "words", "all")
Flagger = Callable[[list[str]], list[bool]]
# Those that project keys with the layer's own to_k from the UNet's hidden states (LoRA lives inside to_k).
PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
SUPPORTED = "Supported: Stable Diffusion 1.x and 2.x pipelines (UNet2DConditionModel + one CLIPTextModel)."


@contextmanager
def mitigated(
    pipeline: DiffusionPipeline,
    bos_scale: float = 1.25,
    keep: Keep = "eos",
    prompt_tokens: int | Sequence[int] | None = None,
    only: Calibration | None = None,
    max_p: float = 0.01,
) -> Iterator[None]:
    """Every call of `pipeline` inside the block is mitigated; afterwards, or after an exception, no trace is left.

    Takes and raises what `mitigate_` does.
    """
    mitigate_(pipeline, bos_scale, keep, prompt_tokens, only, max_p)
    try:
        yield
    finally:
        unmitigate_(pipeline)


def mitigate_(
    pipeline: DiffusionPipeline,
    bos_scale: float = 1.25,
    keep: Keep = "eos",
    prompt_tokens: int | Sequence[int] | None = None,
    only: Calibration | None = None,
    max_p: float = 0.01,
) -> None:
    """Install mitigation in a diffusers pipeline, until `unmitigate_` (arXiv 2403.11052, section 5).

    bos_scale: factor of the logit of text position 0, conditional branch only; 1 leaves it.
    keep: which text positions every cross-attention may see: "eos" up to EOS, "words" up to the last word, "all".
    prompt_tokens: BOS, words and EOS of each prompt; needed where prompts come as `prompt_embeds`, else counted.
    only: mitigate the prompts that this calibration gives a `p_unseen` of at most `max_p`, and no others. Each call
    screens its prompts first, on the noise of the calibration's seeds: one forward a prompt for `noise_magnitude` and
    `attention_profile`, eight for `profile`. Needs `Model.pipeline()`, whose weights are known, and prompts in words.
    Raises AuditError for a pipeline, an attention processor or a text encoder that this does not fit, UsageError for
    a bad argument. A call that passes `prompt_embeds` without `prompt_tokens` raises UsageError unless keep is "all".
    """
    check_setting(bos_scale, keep)
    _check(pipeline)
    _Mitigation(pipeline, bos_scale, keep, prompt_tokens, _flagger(pipeline, only, max_p)).install()


def unmitigate_(pipeline: DiffusionPipeline) -> None:
    """Take the mitigation out of a pipeline again. Raises UsageError if there is none."""
    installed = _installed(pipeline)
    if installed is None:
        raise UsageError("this pipeline is not mitigated", do="Call mitigate_(pipeline) first.")
    installed.remove()


def check_setting(bos_scale: float, keep: str) -> None:
    """Raises UsageError for arguments that `mitigate_` does not take."""
    if not (math.isfinite(bos_scale) and bos_scale >= 0):
        raise UsageError(f"bos_scale is {bos_scale}", do="Give a finite number, 0 or more; the paper's is 1.25.")
    if keep not in KEEP:
        raise UsageError(f"keep is {keep!r}", do=f"Give one of: {', '.join(KEEP)}.")


class _Mitigation:
    """The mitigation of one pipeline: it learns the prompts from `encode_prompt` and applies itself in the UNet."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        bos_scale: float,
        keep: Keep,
        prompt_tokens: int | Sequence[int] | None,
        flag: Flagger | None,
    ) -> None:
        self._pipeline, self._bos_scale, self._keep, self._given = pipeline, bos_scale, keep, prompt_tokens
        self._encode_prompt = pipeline.encode_prompt
        self._signature = inspect.signature(pipeline.encode_prompt)
        self._flag, self.screening = flag, False
        # Of the current call, once its prompts are encoded:
        self._guided = False
        self._images = 0
        self._scale_N1: Tensor | None = None  # bos_scale, or 1 for an image whose prompt is not flagged
        self._visible: slice = slice(None)  # the text positions that any image may see
        self._mask_NK: Tensor | None = None  # those that each may, where they differ
        self._cut = _Once(lambda hidden_BKD: hidden_BKD[:, self._visible].contiguous())
        self._projections: list[_Projection] = []
        self._handle: RemovableHandle | None = None

    def install(self) -> None:
        # The instance's attribute hides the class's method; deleting it brings that back.
        self._pipeline.encode_prompt = self.encode_prompt
        self._handle = self._pipeline.unet.register_forward_pre_hook(self._mask, with_kwargs=True)
        rescale = self._rescale if self._bos_scale != 1 else None
        for layer in cross_attention_layers(self._pipeline.unet):
            self._projections += [_Projection(layer, "to_k", self, rescale), _Projection(layer, "to_v", self, None)]

    def remove(self) -> None:
        del self._pipeline.encode_prompt
        assert self._handle is not None
        self._handle.remove()
        for projection in self._projections:
            projection.remove()

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own, once it is known how many tokens each prompt has."""
        call = self._signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        self._guided = bool(given["do_classifier_free_guidance"])
        counts_P = self._count(given)
        flagged_P = [True] * len(counts_P) if self._flag is None else self._flagged(given)
        encoded = self._encode_prompt(*args, **kwargs)
        self._prepare(encoded[0], counts_P, flagged_P, given["num_images_per_prompt"])
        return encoded

    def _prepare(self, hidden_NKD: Tensor, counts_P: list[int], flagged_P: list[bool], each: int) -> None:
        """What the hooks need of a call, on its device: they run in every layer of every step."""
        longest = hidden_NKD.shape[1]
        visible_P = [min(count, longest) if flag else longest for count, flag in zip(counts_P, flagged_P, strict=True)]
        scale_P = [self._bos_scale if flag else 1.0 for flag in flagged_P]
        self._images = len(hidden_NKD)
        self._scale_N1 = torch.tensor(scale_P, device=hidden_NKD.device).repeat_interleave(each)[:, None]
        self._visible = slice(max(visible_P))
        self._cut.forget()
        for projection in self._projections:
            projection.renew()
        self._mask_NK = None
        if min(visible_P) < max(visible_P):
            visible_N1 = torch.tensor(visible_P, device=hidden_NKD.device).repeat_interleave(each)[:, None]
            self._mask_NK = torch.arange(max(visible_P), device=hidden_NKD.device) < visible_N1

    def _flagged(self, given: dict[str, Any]) -> list[bool]:
        assert self._flag is not None
        if given["prompt"] is None:
            raise UsageError("the call passes prompt_embeds, and only= screens prompts", do="Pass prompt= instead.")
        self.screening = True
        try:
            return self._flag(_listed(given["prompt"]))
        finally:
            self.screening = False

    def _count(self, given: dict[str, Any]) -> list[int]:
        """Visible text positions of each prompt; a longer negative prompt counts for both branches."""
        if given["prompt_embeds"] is not None:
            counts = self._given_counts(len(given["prompt_embeds"]), given["prompt_embeds"].shape[1])
        else:
            prompts = _listed(given["prompt"])
            counts = self._tokens(prompts) if self._given is None else self._given_counts(len(prompts), None)
        negative = given["negative_prompt"]
        if self._guided and negative is not None and given["negative_prompt_embeds"] is None:
            others = self._tokens(_listed(negative))
            counts = [max(one, other) for one, other in zip(counts, others * (len(counts) // len(others)), strict=True)]
        return [count - 1 for count in counts] if self._keep == "words" else counts

    def _given_counts(self, prompts: int, longest: int | None) -> list[int]:
        if self._given is None:
            if self._keep == "all" and longest is not None:
                return [longest] * prompts
            what = "the call passes prompt_embeds, and how many of their positions are prompt is not known"
            raise UsageError(what, do='Give prompt_tokens= (BOS, words and EOS of each prompt), or keep="all".')
        counts = [self._given] * prompts if isinstance(self._given, int) else list(self._given)
        if len(counts) != prompts or not all(2 <= count <= (longest or count) for count in counts):
            where = f"{prompts} prompts" + (f" of {longest} positions" if longest else "")
            raise UsageError(f"prompt_tokens is {self._given} for {where}", do="Give one number of 2 or more a prompt.")
        return counts

    def _tokens(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt, BOS and EOS included, as the pipeline truncates them."""
        tokenizer = self._pipeline.tokenizer
        if hasattr(self._pipeline, "maybe_convert_prompt"):  # a textual inversion may stand for several tokens
            prompts = self._pipeline.maybe_convert_prompt(prompts, tokenizer)
        return [
            len(ids) for ids in tokenizer(prompts, max_length=tokenizer.model_max_length, truncation=True).input_ids
        ]

    def _mask(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before each forward of the UNet: cut or mask the tail of its hidden states [B, K, D]."""
        if self.screening:
            return args, kwargs
        if self._scale_N1 is None:
            what = "the mitigated UNet runs, but its pipeline has encoded no prompt yet"
            raise UsageError(what, do="Call the pipeline, not its UNet, while it is mitigated.")
        hidden_BKD: Tensor = kwargs["encoder_hidden_states"] if len(args) < 3 else args[2]
        branches = 1 + self._guided
        if len(hidden_BKD) != branches * self._images:
            what = f"the UNet gets {len(hidden_BKD)} rows for {self._images} images and {branches} guidance branches"
            raise AuditError(what, where=type(self._pipeline).__name__, do=SUPPORTED, kind="unsupported_model")
        if self._keep == "all":
            return args, kwargs
        if kwargs.get("encoder_attention_mask") is not None:
            what = "the pipeline masks text positions itself (encoder_attention_mask)"
            raise AuditError(what, where=type(self._pipeline).__name__, do=SUPPORTED, kind="unsupported_model")
        hidden_BKD = self._cut(hidden_BKD)
        if self._mask_NK is not None:
            kwargs = {**kwargs, "encoder_attention_mask": self._mask_NK.repeat(branches, 1)}
        if len(args) < 3:
            return args, {**kwargs, "encoder_hidden_states": hidden_BKD}
        return (*args[:2], hidden_BKD, *args[3:]), kwargs

    def _rescale(self, key_BKHD: Tensor) -> Tensor:
        """The logit of position 0, by way of its key."""
        assert self._scale_N1 is not None  # the UNet's own hook came first
        key_BKHD[-self._images :, 0].mul_(self._scale_N1)
        return key_BKHD


class _Once:
    """A function of a tensor, computed anew only for another tensor, or the same one after it was written to."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        # Inference tensors keep no count of writes, and a compiled graph must not depend on what was seen before.
        if torch.compiler.is_compiling() or tensor.is_inference() or torch.is_grad_enabled():
            return self._function(tensor)
        if self._last is None or self._last[0] is not tensor or self._last[1] != tensor._version:
            self._last = tensor, tensor._version, self._function(tensor)
        return self._last[2]

    def forget(self) -> None:
        self._last = None


class _Projection:
    """Takes the place of the `forward` of a `to_k` or `to_v` until it is removed."""

    def __init__(
        self, layer: nn.Module, name: str, owner: _Mitigation, rescale: Callable[[Tensor], Tensor] | None
    ) -> None:
        module = getattr(layer, name)
        self._layer, self._name, self._module, self._owner = layer, name, module, owner
        self._before, self._forward = vars(module).get("forward"), module.forward
        self._once = _Once(self._forward if rescale is None else lambda hidden: rescale(self._forward(hidden)))
        self._removed = False
        module.forward = self

    def __call__(self, hidden_BKD: Tensor) -> Tensor:
        if self._removed or self._owner.screening:
            return cast(Tensor, self._forward(hidden_BKD))
        return self._once(hidden_BKD)

    def renew(self) -> None:
        """Before the next call. Raises UsageError if another module has taken the place of the mitigated one."""
        self._once.forget()
        if getattr(self._layer, self._name) is not self._module:
            what = f"{self._name} of a cross-attention is another module since the pipeline was mitigated"
            raise UsageError(what, do="Load adapters (LoRA) before mitigate_.")

    def remove(self) -> None:
        self._removed = True
        self._once.forget()
        if vars(self._module).get("forward") is self:  # or somebody's offloading has wrapped it since
            del self._module.forward
            if self._before is not None:
                self._module.forward = self._before


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _flagger(pipeline: DiffusionPipeline, only: Calibration | None, max_p: float) -> Flagger | None:
    """What tells which prompts to mitigate: those that `only` scores unlike captions that were never trained on."""
    if only is None:
        return None
    if not 0 < max_p <= 1:
        raise UsageError(f"max_p is {max_p}", do="Give a number from 0 (excluded) to 1, usually 0.01.")
    model: Model | None = getattr(pipeline, "audited", None)
    if model is None:
        what = "only= needs to know the weights that the calibration holds for"
        raise UsageError(what, do="Make the pipeline by audit.load_model(path).pipeline().")

    def flag(prompts: list[str]) -> list[bool]:
        table = screen(model, list(dict.fromkeys(prompts)), seeds=only.context["seeds"], detectors=[only.detector])
        scores = only.score(table)
        p_of = dict(zip(scores["caption"].to_pylist(), scores["p_unseen"].to_pylist(), strict=True))
        return [p_of.get(prompt, 0.0) <= max_p for prompt in prompts]  # one that cannot be scored is mitigated

    return flag


def _installed(pipeline: DiffusionPipeline) -> _Mitigation | None:
    owner = getattr(vars(pipeline).get("encode_prompt"), "__self__", None)
    return owner if isinstance(owner, _Mitigation) else None


def _check(pipeline: DiffusionPipeline) -> None:
    """Refuse by name what the hooks would pass by."""
    kind = type(pipeline).__name__
    if _installed(pipeline) is not None:
        raise UsageError("this pipeline is mitigated already", do="Call unmitigate_(pipeline) first.")
    unet, encoder = getattr(pipeline, "unet", None), getattr(pipeline, "text_encoder", None)
    if isinstance(unet, torch._dynamo.OptimizedModule):
        raise AuditError("the UNet is compiled already", where=kind, do="Call mitigate_ before torch.compile.")
    parts = ("text_encoder_2", "text_encoder_3", "controlnet")
    extra = [name for name in parts if getattr(pipeline, name, None) is not None]
    if not isinstance(unet, UNet2DConditionModel) or not isinstance(encoder, CLIPTextModel) or extra:
        found = " + ".join([type(unet).__name__, type(encoder).__name__, *extra])
        raise AuditError(f"{kind} has {found}", do=SUPPORTED, kind="unsupported_model")
    for name, processor in unet.attn_processors.items():
        if type(processor).__name__ not in PROCESSORS:
            what = f"the attention processor {type(processor).__name__} cannot be mitigated"
            do = f"Take it out first (unload_ip_adapter, unfuse_qkv_projections). Supported: {', '.join(PROCESSORS)}."
            raise AuditError(what, where=name, do=do, kind="unsupported_model")
    tokenizer = pipeline.tokenizer
    if tokenizer.bos_token_id is None or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        what = "the tokenizer puts no BOS first, and it is BOS that is rescaled"
        raise AuditError(what, where=kind, do=SUPPORTED, kind="unsupported_model")
