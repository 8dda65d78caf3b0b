"""The call of a pipeline that is running, and the refusal of callers of a mitigated denoiser that are no such call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from audit.attention.seam import Seam
from audit.errors import UsageError
from audit.mitigation.methods.method import Effect, Forward, Prompts
from audit.mitigation.run_flag import RunFlagging

# Shapes: N images, P width of the pooled vector.


@dataclass
class Call:
    """A call of a pipeline. The owner is None if a mitigated denoiser is to run unmitigated."""

    owner: Any
    pipeline: Any = None
    family: Any = None
    denoiser: Any = None
    called: Any = None  # the denoiser, or the module that torch.compile made of it
    prompts: Prompts | None = None
    effect: Effect | None = None
    pooled_1P: Tensor | None = None  # the pooled vector to give in place of those of mitigated prompts
    on_N: Tensor | None = None  # which images are mitigated from the next forward on
    flagging: RunFlagging | None = None
    forward: Forward | None = None  # the latest one
    running: bool = False
    halved: bool = False  # whether the forward in progress has the unconditional rows alone
    seams: tuple[Seam, ...] = ()  # of the forward in progress
    forwards: int = 0
    token: Token[Call | None] | None = None


CALL: ContextVar[Call | None] = ContextVar("call", default=None)
LOCKS: WeakKeyDictionary[nn.Module | None, threading.RLock] = WeakKeyDictionary()  # one forward at a time


@contextmanager
def plainly() -> Iterator[None]:
    """Run mitigated denoisers as if they were not mitigated, inside the `with` block."""
    token = CALL.set(Call(None))
    try:
        yield
    finally:
        CALL.reset(token)


def refuse_others(denoiser: nn.Module, _args: Any) -> None:
    """Refuse other callers of a mitigated denoiser. A graph that was compiled earlier runs unmitigated for them."""
    if torch.compiler.is_compiling():
        return
    call = CALL.get()
    if call is None or (call.owner is not None and call.denoiser is not denoiser):
        refuse()


def refuse() -> NoReturn:
    """Raise UsageError: a mitigated denoiser is called outside of a call of its pipeline."""
    what = "this denoiser is part of a mitigated pipeline, which has encoded no prompt for this forward"
    hint = "Call the pipeline, not its denoiser, and mitigate every pipeline that shares the denoiser (mitigate_)."
    raise UsageError(what, hint=hint)
