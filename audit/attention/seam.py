"""Observe attention, and change it if wanted, whatever the processor and however the model is compiled.

A watched layer runs as usual. While it runs, the seam sees the queries and keys that are in effect: after adapters
(LoRA), fused projections and norms. There are three ways to see them. The processors that diffusers uses by default
ask the layer for `norm_q` and `norm_k` right before they attend, which costs next to nothing to watch. In compiled
graphs, and with other processors, a `TorchFunctionMode` sees the call of `scaled_dot_product_attention`; the mode sees
every torch call of a layer, at 2 µs each. Processors without that call (sliced attention, xFormers) split their heads
with `Attention.head_to_batch_dim`, which is watched instead.

To watch a layer, its class is replaced by a subclass, as `torch.nn.utils.parametrize` does. Dynamo guards on the class
of a module, not on its hooks, so a warm `torch.compile` sees the seam and forgets it when it is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from audit.errors import AuditError

# Shapes: B rows, H heads, Q queries, K keys (image queries and text positions, except in joint attention, which has
# both in each), D width of a head.

_ATTRIBUTE = "_audit_run"
# Processors that apply the layer's `norm_q` and then `norm_k`, if any, to [B, H, positions, D] and attend right after.
_NORMING = (AttnProcessor2_0, FusedAttnProcessor2_0)


class Slot:
    """What one layer showed in the current forward: how often it attended, and what was read from it."""

    def __init__(self) -> None:
        self.times = 0
        self.value: Tensor | None = None


class Seam:
    """Watches the attention of the given layers inside a `with` block.

    A subclass defines in `attend` what to do with one attention. Each layer must attend exactly once per forward.
    Otherwise a processor or a patch hides layers or attends more than once, and `check` raises AuditError.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._slots = [Slot() for _ in self._layers]

    def __enter__(self) -> Self:
        for layer, slot in zip(self._layers, self._slots, strict=True):
            _attach(layer, self, slot)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for layer in self._layers:
            _detach(layer, self)

    def attend(self, slot: Slot, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Look at one attention before it is computed, and return the keys to use.

        Args:
            slot: Storage of the layer; `slot.value` is for the subclass.
            query_BHQD: Queries.
            key_BHKD: Keys.
            mask: Boolean (True: visible) or added to the logits, broadcastable to [B, H, Q, K].
            scale: Factor of the logits.

        Returns:
            The keys to attend with: [B, H, K, D].
        """
        raise NotImplementedError

    def mask(self, mask: Tensor | None, key_BHKD: Tensor) -> Tensor | None:
        """Return the mask to use. Called before `attend`, where a layer calls `scaled_dot_product_attention` only.

        Args:
            mask: Boolean (True: visible) or added to the logits, broadcastable to [B, H, Q, K].
            key_BHKD: Keys.
        """
        return mask

    def check(self) -> list[Tensor | None]:
        """Return and forget what was read from each layer in the latest forward, in the order of the layers.

        Raises:
            AuditError: A layer was not seen, or was seen more than once.
        """
        times, values = [slot.times for slot in self._slots], [slot.value for slot in self._slots]
        for slot in self._slots:
            slot.times, slot.value = 0, None
        odd = [at for at, count in enumerate(times) if count != 1]
        if odd:
            processor = type(self._layers[odd[0]].processor).__name__
            what = f"of {len(times)} watched layers, {len(odd)} did not attend exactly once in this forward"
            where = f"layer {odd[0]}, with {processor}, attended {times[odd[0]]} times"
            hint = "Remove what replaces attention: unload_ip_adapter(), set the default processors "
            hint += "(set_attn_processor) and the backend native (set_attention_backend)."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")
        return values


class _Run:
    """The seams that watch one layer, and the state of the layer's current run."""

    def __init__(self, layer: nn.Module) -> None:
        self.seams: tuple[tuple[Seam, Slot], ...] = ()
        self._heads, self._scale = layer.heads, getattr(layer, "scale", None)  # FluxAttention has no scale
        self.norming = False
        self._mask: Tensor | None = None
        self._query: Tensor | None = None
        self._parts = 0

    def begin(self, mask: Tensor | None) -> None:
        """Begin a run. `mask` is added to the logits: [B, 1, K]."""
        self._mask, self._query, self._parts = mask, None, 0

    def key(self, query_BHQD: Tensor, key_BHKD: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Show the attention to every seam, and return the keys to attend to."""
        scale = query_BHQD.shape[-1] ** -0.5 if scale is None else scale
        for seam, slot in self.seams:
            slot.times += 1
            key_BHKD = seam.attend(slot, query_BHQD, key_BHKD, mask, scale)
        return key_BHKD

    def split(self, part_NTD: Tensor) -> Tensor:
        """Do the same for processors that split query, key and value, in this order, to [B x H, positions, D]."""
        self._parts += 1
        if self._parts % 3 == 1:
            self._query = part_NTD
        if self._parts % 3 != 2 or self._query is None:
            return part_NTD
        query_BHQD, key_BHKD = (part.unflatten(0, (-1, self._heads)) for part in (self._query, part_NTD))
        return self.key(query_BHQD, key_BHKD, self._mask_B11K(), self._scale).flatten(0, 1)

    def norm_query(self, norm: Any, query_BHQD: Tensor) -> Tensor:
        """Apply the layer's own norm, if any, to the queries, and keep them for the keys."""
        self._query = query_BHQD if norm is None else norm(query_BHQD)
        return self._query

    def norm_key(self, norm: Any, key_BHKD: Tensor) -> Tensor:
        """Apply the layer's own norm, if any, to the keys, and return the keys to attend to."""
        assert self._query is not None
        key_BHKD = key_BHKD if norm is None else norm(key_BHKD)
        return self.key(self._query, key_BHKD, self._mask_B11K(), None)

    def _mask_B11K(self) -> Tensor | None:
        return None if self._mask is None else self._mask[:, None]


class _Tap(TorchFunctionMode):
    """Passes every `scaled_dot_product_attention` of a run to the seams."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attend(self.run, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    run: _Run,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    for seam, _ in run.seams:
        attn_mask = seam.mask(attn_mask, key)
    key = run.key(query, key, attn_mask, scale)
    return scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


@functools.cache
def _watched(base: type[nn.Module]) -> type[nn.Module]:
    class Watched(base):  # type: ignore[misc, valid-type]
        """The base class with a seam."""

        def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            run = self._audit_run
            run.begin(kwargs.get("attention_mask") if len(args) < 2 else args[1])
            if not torch.compiler.is_compiling() and type(self.processor) in _NORMING:
                run.norming = True
                try:
                    return super().__call__(hidden_states, *args, **kwargs)
                finally:
                    run.norming = False
            with _Tap(run):
                return super().__call__(hidden_states, *args, **kwargs)

        @property
        def norm_q(self) -> Any:
            run, norm = self._audit_run, _own(self, "norm_q")
            return functools.partial(run.norm_query, norm) if run.norming else norm

        @property
        def norm_k(self) -> Any:
            run, norm = self._audit_run, _own(self, "norm_k")
            return functools.partial(run.norm_key, norm) if run.norming else norm

        def head_to_batch_dim(self, tensor: Tensor, out_dim: int = 3) -> Tensor:
            return self._audit_run.split(super().head_to_batch_dim(tensor, out_dim))

    Watched.__name__, Watched.__qualname__, Watched.__module__ = base.__name__, base.__qualname__, base.__module__
    return Watched


def _own(layer: nn.Module, name: str) -> Any:
    """Return the norm that the layer itself has under a name, or None."""
    return layer._modules[name] if name in layer._modules else vars(layer).get(name)


def _attach(layer: nn.Module, seam: Seam, slot: Slot) -> None:
    if _ATTRIBUTE not in vars(layer):
        vars(layer)[_ATTRIBUTE] = _Run(layer)
        layer.__class__ = _watched(type(layer))  # type: ignore[arg-type]
    vars(layer)[_ATTRIBUTE].seams += ((seam, slot),)


def _detach(layer: nn.Module, seam: Seam) -> None:
    run = vars(layer)[_ATTRIBUTE]
    run.seams = tuple(pair for pair in run.seams if pair[0] is not seam)
    if not run.seams:
        layer.__class__ = type(layer).__mro__[1]
        del vars(layer)[_ATTRIBUTE]
