"""Tell what a model does not show, if it is run by the call of its own pipeline (`Model.OWN_LOOP`)."""

from __future__ import annotations

from collections.abc import Iterable

from audit.detectors import RUN, SCREEN
from audit.detectors.detector import RunDetector, ScreenDetector
from audit.errors import AuditError
from audit.models.model import Model

Detector = ScreenDetector | type[RunDetector]


def check_supported(model: Model, detectors: Iterable[Detector]) -> None:
    """Raise AuditError if one of the detectors reads what the model does not show."""
    for detector in detectors if model.OWN_LOOP else ():
        if reads := _reads(detector):
            where = SCREEN if detector.name in SCREEN else RUN
            others = ", ".join(name for name, other in where.items() if not _reads(other))
            raise _not_shown(model, f"the detector {detector.name}", reads, f"Supported here: {others}.")


def check_attention(model: Model, what: str) -> None:
    """Raise AuditError if a model does not show its attention, which `what` reads."""
    if model.OWN_LOOP:
        hint = "Add a family for this pipeline (docs/how-to/add-a-model-family.md)."
        raise _not_shown(model, what, "attention", hint)


def _reads(detector: Detector) -> str | None:
    """Name what a detector reads besides the predicted noise of a screen and the latents of a run."""
    if isinstance(detector, ScreenDetector):
        attends, other = bool(detector.attention), "mixtures of prompt embeddings" if detector.mixes else None
    else:
        attends = detector.needs_attention or detector.needs_end
        other = "the response in each step" if detector.needs_response else None
    return "attention" if attends else other


def _not_shown(model: Model, what: str, reads: str, hint: str) -> AuditError:
    kind = type(model).__name__
    what = f"{what} reads {reads}, which crossaudit does not see in a {kind}"
    return AuditError(what, hint=hint, kind="unsupported_model")
