"""The registry of detectors: one file a detector, one line here."""

from __future__ import annotations

from collections.abc import Iterable

from audit.detectors import attention_profile, entropy_single_step, noise_magnitude, noise_profile, profile
from audit.detectors.detector import RunDetector, ScreenDetector
from audit.detectors.entropy_trajectory import EntropyTrajectory
from audit.detectors.noise_magnitude_mean import NoiseMagnitudeMean
from audit.errors import UsageError

SCREEN: dict[str, ScreenDetector] = {
    "attention_profile": attention_profile.DETECTOR,
    "noise_profile": noise_profile.DETECTOR,
    "entropy_single_step": entropy_single_step.DETECTOR,
    "noise_magnitude": noise_magnitude.DETECTOR,
}
RUN: dict[str, type[RunDetector]] = {
    "entropy_trajectory": EntropyTrajectory,
    "entropy_trajectory_signed": EntropyTrajectory,
    "noise_magnitude_mean": NoiseMagnitudeMean,
}
COMBINED: dict[str, tuple[str, ...]] = {profile.NAME: profile.PARTS}
NAMES = (*COMBINED, *SCREEN, *RUN)


def screen_detectors(names: Iterable[str]) -> list[ScreenDetector]:
    """The detectors of a screen, each once, in the order named. Raises UsageError for any other name."""
    return [SCREEN[part] for part in _parts(names, SCREEN, "generate", RUN)]


def run_detectors(names: Iterable[str]) -> list[type[RunDetector]]:
    """The detectors of a generation, each once, in the order named. Raises UsageError as `screen_detectors`."""
    return list(dict.fromkeys(RUN[part] for part in _parts(names, RUN, "screen", SCREEN)))


def _parts(names: Iterable[str], here: Iterable[str], elsewhere: str, there: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise UsageError(f"detectors is the string {names!r}", do=f"Give a list: [{names!r}].")
    offered = ", ".join([*(name for name, parts in COMBINED.items() if parts[0] in here), *here])
    parts: list[str] = []
    for name in names:
        expanded = COMBINED.get(name, (name,))
        if expanded[0] in there:
            raise UsageError(f"the detector {name!r} belongs to audit.{elsewhere}", do=f"Here: {offered}.")
        if expanded[0] not in here:
            raise UsageError(f"unknown detector {name!r}", do=f"Known here: {offered}.")
        parts += expanded
    return list(dict.fromkeys(parts))
