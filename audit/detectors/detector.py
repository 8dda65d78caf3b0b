"""What a detector is. One that screens looks at forwards on pure noise; one that runs follows a whole generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

# Shapes: B rows, L layers, Q image queries, K text positions, N captions, F features, C, H and W of the latent.

Columns = Mapping[str, npt.NDArray[np.float64]]
ALL_LAYERS = None
# "larger": large values of the one feature are suspicious; "either": any deviation from the control captions is;
# "agreement": a long mean direction over seeds is.
DistanceKind = Literal["larger", "either", "agreement"]


@dataclass(frozen=True)
class Seen:
    """What the forwards of a batch showed, by position in the 50-step schedule.

    With zero terminal SNR the predicted noise at position 0 is the input. Entry 0 of `alpha`, `response_BCHW`,
    `unconditional_BCHW` and `unconditional_original_BCHW` is then that of the first position where it is not.

    attn_BLK: averaged attention of the first layers, as many as any detector asked for. response_BCHW:
    `eps(c) - eps(∅)`, zero where the caption's tokens are those of the empty prompt. unconditional_BCHW: `eps(∅)`.
    unconditional_original_BCHW: the image that the model predicts without caption, of position 0 only, in float64.
    noise_BCHW is the initial noise, `alpha` the cumulated alpha of the schedule.
    """

    noise_BCHW: Tensor
    alpha: dict[int, float] = field(default_factory=dict)
    attn_BLK: dict[int, Tensor] = field(default_factory=dict)
    response_BCHW: dict[int, Tensor] = field(default_factory=dict)
    unconditional_BCHW: dict[int, Tensor] = field(default_factory=dict)
    unconditional_original_BCHW: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ScreenDetector:
    """Scores from pure noise.

    attention: position in the 50-step schedule -> how many layers to see (ALL_LAYERS: all). response: the positions
    at which `eps(c) - eps(∅)` is needed. measure: what is seen -> column name -> [B] or [B, n]. features: columns
    averaged over seeds -> [N, F], what a calibration measures distances in; distance: how
    (`audit.calibration.distance`). source: the paper. cost: in forwards of the UNet a caption.
    """

    name: str
    version: int
    columns: tuple[str, ...]
    measure: Callable[[Seen], dict[str, Tensor]]
    features: Callable[[Columns], npt.NDArray[np.float64]]
    source: str
    cost: str
    attention: Mapping[int, int | None] = field(default_factory=dict)
    response: tuple[int, ...] = ()
    distance: DistanceKind = "larger"


@dataclass(frozen=True)
class TrajectoryStep:
    """What one step of a run showed of a batch; what no detector needs may be None.

    attn_BLK: averaged attention of all layers. response_BCHW: `eps(c) - eps(∅)`. end_BQ, in the last step only:
    attention of each image query to EOS, mean over heads and the down layers of the highest resolution.
    """

    attn_BLK: Tensor | None = None
    response_BCHW: Tensor | None = None
    end_BQ: Tensor | None = None


class Follower(Protocol):
    """What follows the denoising run of one batch, step by step, and says what it needs to see."""

    needs_attention: ClassVar[bool]
    needs_response: ClassVar[bool]
    needs_end: ClassVar[bool]

    def observe(self, step: int, seen: TrajectoryStep) -> None: ...


class RunDetector(Follower, Protocol):
    """Scores from a full denoising run: one object follows one batch, by running sums, so that memory does not grow
    with the steps.

    scores: the names that a calibration knows, each a column or what `features` makes of several (docs as for
    `ScreenDetector`); empty for what is no score. source, cost: likewise.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    columns: ClassVar[tuple[str, ...]]
    scores: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    cost: ClassVar[str]

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None: ...

    def result(self) -> dict[str, Tensor]: ...

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]: ...
