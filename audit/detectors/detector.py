"""Define what a detector is: screening detectors see forwards on pure noise, run detectors follow a full generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from audit.models.conditioning import Conditioning

# Shapes: B rows, L layers, Q image queries, K text positions, N captions, F features; C, H and W of the
# latent.

Columns = Mapping[str, npt.NDArray[np.float64]]
ALL_LAYERS = None
# "larger": a large mean of the features' z-scores is suspicious. "either": any deviation from the control captions is.
# "agreement": a long mean direction over seeds is.
DistanceKind = Literal["larger", "either", "agreement"]


class OwnForwards(Protocol):
    """Runs forwards that only one detector needs, on the batch and the initial noise of `Seen`.

    They are run when a detector's `measure` calls a method, and count towards the planned FLOPs. "Position 0" is the
    first position at which the predicted noise depends on the caption, as in `Seen`.

    Attributes:
        conditioning: What the denoiser is given of the captions.
        null: What it is given without a caption: one row.
    """

    @property
    def conditioning(self) -> Conditioning: ...  # noqa: D102
    @property
    def null(self) -> Conditioning: ...  # noqa: D102

    def response(self, conditioning: Conditioning) -> Tensor:
        """Compute `eps(conditioning) - eps(∅)` at position 0: [B, C, H, W]. Needs 0 in `ScreenDetector.response`."""

    def after_guided_step(self, scale: float) -> Tensor:
        """Compute `eps(c)` one timestep after a guided step from position 0: [B, C, H, W].

        Needs 0 in `ScreenDetector.response`.

        Args:
            scale: Guidance scale of the step.
        """


@dataclass(frozen=True)
class Seen:
    """What the forwards of a batch showed, by position in the 50-step schedule.

    With zero terminal SNR, the predicted noise at position 0 equals the input. Entry 0 of `alpha`, `response_BCHW`,
    `unconditional_BCHW` and `unconditional_original_BCHW` then belongs to the first position at which it does not.

    Attributes:
        noise_BCHW: Initial noise.
        alpha: Cumulative alpha of the schedule.
        attn_BLK: Averaged attention of the first layers, as many as any detector asked for.
        response_BCHW: `eps(c) - eps(∅)`; zero if the caption's tokens are those of the empty prompt.
        unconditional_BCHW: `eps(∅)`.
        unconditional_original_BCHW: Image that the model predicts without a caption, for position 0 only, in float64.
        own: Runs forwards that the detectors do not share. None where nothing but attention is given.
    """

    noise_BCHW: Tensor
    alpha: dict[int, float] = field(default_factory=dict)
    attn_BLK: dict[int, Tensor] = field(default_factory=dict)
    response_BCHW: dict[int, Tensor] = field(default_factory=dict)
    unconditional_BCHW: dict[int, Tensor] = field(default_factory=dict)
    unconditional_original_BCHW: dict[int, Tensor] = field(default_factory=dict)
    own: OwnForwards | None = None


@dataclass(frozen=True)
class ScreenDetector:
    """A detector that scores captions from pure noise.

    Attributes:
        name: Name of the detector.
        version: Raised when its numbers change.
        columns: Columns that it adds to the table.
        measure: Maps what was seen to column name -> values [B] or [B, n].
        features: Maps columns averaged over seeds to features [N, F], in which a calibration measures distances.
        source: The paper it is from.
        cost: Forwards of the UNet per caption.
        attention: Position in the 50-step schedule -> number of layers to record (ALL_LAYERS: all).
        response: Positions at which `eps(c) - eps(∅)` is needed.
        distance: How a calibration measures distances (`audit.calibration.distance`).
        own_forwards: Number of forwards that `measure` runs itself (`Seen.own`).
        mixes: Whether these are given mixtures of prompt embeddings.
        measured_by: Name of the detector that measures the columns, if this one is another score of them.
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
    own_forwards: int = 0
    mixes: bool = False
    measured_by: str | None = None


@dataclass(frozen=True)
class TrajectoryStep:
    """What one step of a run showed for a batch; entries that no detector needs may be None.

    Attributes:
        attn_BLK: Averaged attention of all layers.
        response_BCHW: `eps(c) - eps(∅)`.
        end_BQ: In the last step only, attention of each image query to EOS: mean over heads and over the down layers of
            the highest resolution.
        update_BCHW: How the step changed the latents: those after it minus those before.
        alpha: Cumulative alpha of the step's timestep.
    """

    attn_BLK: Tensor | None = None
    response_BCHW: Tensor | None = None
    end_BQ: Tensor | None = None
    update_BCHW: Tensor | None = None
    alpha: float | None = None


class Follower(Protocol):
    """Follows the denoising run of one batch step by step, and declares what it needs to see."""

    needs_attention: ClassVar[bool]
    needs_response: ClassVar[bool]
    needs_end: ClassVar[bool]

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""


class RunDetector(Follower, Protocol):
    """A detector that scores captions from a full denoising run. One instance follows one batch.

    It keeps running sums, so that its memory does not grow with the number of steps.

    Attributes:
        scores: Names of scores that a calibration can use. Each is a column, or is computed by `features` from several
            columns. Empty if the detector gives no score.

    The other attributes are those of `ScreenDetector`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    columns: ClassVar[tuple[str, ...]]
    scores: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    cost: ClassVar[str]

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None: ...

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features [N, F] of a score from columns averaged over seeds."""
