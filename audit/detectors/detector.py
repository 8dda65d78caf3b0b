"""What a detector is. One that screens looks at forwards on pure noise; one that runs follows a whole generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

# Shapes: B rows, L layers, K text positions, N captions, F features, C, H and W of the latent.

Columns = Mapping[str, npt.NDArray[np.float64]]
ALL_LAYERS = None


@dataclass(frozen=True)
class Seen:
    """What the forwards of a batch showed, by position in the 50-step schedule.

    attn_BLK: averaged attention of the first layers, as many as any detector asked for. response_BCHW:
    `eps(c) - eps(null)`, zero where the caption's tokens are those of the empty prompt. null_BCHW: `eps(null)`.
    """

    attn_BLK: dict[int, Tensor] = field(default_factory=dict)
    response_BCHW: dict[int, Tensor] = field(default_factory=dict)
    null_BCHW: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScreenDetector:
    """Scores from pure noise.

    attention: position in the 50-step schedule -> how many layers to see (ALL_LAYERS: all). response: the positions
    at which `eps(c) - eps(null)` is needed. measure: what is seen -> column name -> [B] or [B, n]. features: columns
    averaged over seeds -> [N, F], what a calibration measures distances in (one column: larger is more suspicious).
    """

    name: str
    version: int
    columns: tuple[str, ...]
    measure: Callable[[Seen], dict[str, Tensor]]
    features: Callable[[Columns], npt.NDArray[np.float64]]
    attention: Mapping[int, int | None]
    response: tuple[int, ...] = ()


class RunDetector(Protocol):
    """Scores from a full denoising run: one object follows one batch, by running sums, so that memory does not grow
    with the steps. `attn_BLK` is the averaged attention of all layers, `response_BCHW` is `eps(c) - eps(null)`;
    what a detector does not need it may be given as None.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    columns: ClassVar[tuple[str, ...]]
    needs_attention: ClassVar[bool]
    needs_response: ClassVar[bool]

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None: ...

    def observe(self, step: int, attn_BLK: Tensor | None, response_BCHW: Tensor | None) -> None: ...

    def result(self) -> dict[str, Tensor]: ...
