"""Register the detectors: one file per detector, one line per detector here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from audit.detectors import (
    attention_profile,
    attention_profile_early,
    caption_response,
    condition_difference,
    entropy_single_step,
    noise_alignment,
    noise_magnitude,
    noise_profile,
    noise_response_mean,
    one_step_error,
    profile,
    response_and_attention,
    seed_agreement,
    step_change,
)
from audit.detectors.bright_ending import BrightEnding
from audit.detectors.detector import Columns, DistanceKind, RunDetector, ScreenDetector
from audit.detectors.entropy_trajectory import EntropyTrajectory
from audit.detectors.noise_magnitude_mean import NoiseMagnitudeMean
from audit.detectors.score_difference import ScoreDifference
from audit.detectors.trajectory_profile import TrajectoryProfile
from audit.detectors.update_norm_profile import UpdateNormProfile
from audit.errors import UsageError

if TYPE_CHECKING:
    from audit.models.model import Model

SCREEN: dict[str, ScreenDetector] = {
    "caption_response": caption_response.DETECTOR,
    "attention_profile": attention_profile.DETECTOR,
    "noise_profile": noise_profile.DETECTOR,
    "entropy_single_step": entropy_single_step.DETECTOR,
    "noise_magnitude": noise_magnitude.DETECTOR,
    "noise_alignment": noise_alignment.DETECTOR,
    "one_step_error": one_step_error.DETECTOR,
    "attention_profile_early": attention_profile_early.DETECTOR,
    "seed_agreement": seed_agreement.DETECTOR,
    "noise_response_mean": noise_response_mean.DETECTOR,
    "step_change": step_change.DETECTOR,
    "condition_difference": condition_difference.DETECTOR,
}
RUN: dict[str, type[RunDetector]] = {
    "entropy_trajectory": EntropyTrajectory,
    "entropy_trajectory_signed": EntropyTrajectory,
    "noise_magnitude_mean": NoiseMagnitudeMean,
    "trajectory_profile": TrajectoryProfile,
    "update_norm_profile": UpdateNormProfile,
    "score_difference": ScoreDifference,
    "bright_ending": BrightEnding,
}
COMBINED: dict[str, tuple[str, ...]] = {
    profile.NAME: profile.PARTS,
    response_and_attention.NAME: response_and_attention.PARTS,
}
NAMES = (*COMBINED, *SCREEN, *RUN)
SCORES = (*COMBINED, *SCREEN, *(name for name, detector in RUN.items() if name in detector.scores))


def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
    """Return the features [N, F] in which a calibration of this (uncombined) score measures distances."""
    return SCREEN[name].features(columns) if name in SCREEN else RUN[name].features(name, columns)


def columns_of(name: str) -> tuple[str, ...]:
    """Return the columns from which an (uncombined) score is computed."""
    detector = SCREEN.get(name) or RUN[name]
    return (name,) if name in detector.columns else detector.columns


def measured_by(name: str) -> str:
    """Return the name of the detector that measures the columns of an (uncombined) score."""
    return SCREEN[name].measured_by or name if name in SCREEN else RUN[name].name


def distance_kind(name: str) -> DistanceKind:
    """Return the kind of distance that a calibration of this (uncombined) score uses."""
    if name in SCREEN:
        return SCREEN[name].distance
    return "larger" if name in RUN[name].columns else "either"


def uncalibrated(names: Iterable[str], family: type[Model]) -> list[str]:
    """Return the detectors that are uncalibrated evidence for a family of models.

    They read attention, and how well they tell memorized captions was not measured on planted models of the family.
    """
    stages = {name: "generate" if name in RUN else "screen" for name in NAMES}
    return [name for name in names if _reads_attention(name) and stages[name] not in family.PLANTED]


def _reads_attention(name: str) -> bool:
    return any(
        bool(SCREEN[part].attention) if part in SCREEN else RUN[part].needs_attention or RUN[part].needs_end
        for part in map(measured_by, COMBINED.get(name, (name,)))
    )


def screen_detectors(names: Iterable[str]) -> list[ScreenDetector]:
    """Return the screening detectors, each once, in the order named.

    Raises:
        UsageError: A name is not that of a screening detector.
    """
    parts = _parts(names, SCREEN, "generate", RUN)
    return [SCREEN[part] for part in dict.fromkeys(map(measured_by, parts))]


def run_detectors(names: Iterable[str]) -> list[type[RunDetector]]:
    """Return the trajectory detectors, each once, in the order named.

    Raises:
        UsageError: A name is not that of a trajectory detector.
    """
    return list(dict.fromkeys(RUN[part] for part in _parts(names, RUN, "screen", SCREEN)))


def _parts(names: Iterable[str], here: Iterable[str], elsewhere: str, there: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise UsageError(f"detectors is the string {names!r}", hint=f"Give a list: [{names!r}].")
    offered = ", ".join([*(name for name, parts in COMBINED.items() if parts[0] in here), *here])
    parts: list[str] = []
    for name in names:
        expanded = COMBINED.get(name, (name,))
        if expanded[0] in there:
            raise UsageError(f"the detector {name!r} belongs to audit.{elsewhere}", hint=f"Available here: {offered}.")
        if expanded[0] not in here:
            raise UsageError(f"unknown detector {name!r}", hint=f"Available here: {offered}.")
        parts += expanded
    return list(dict.fromkeys(parts))
