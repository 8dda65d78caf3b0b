"""Audit a text-to-image diffusion model for memorized training images.

Names are imported lazily: `import audit.schema` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.calibration.calibration import Calibration as Calibration
    from audit.calibration.calibration import calibrate as calibrate
    from audit.calibration.calibration import load_calibration as load_calibration
    from audit.duplicates.captions import caption_groups as caption_groups
    from audit.duplicates.captions import caption_id as caption_id
    from audit.errors import AuditError as AuditError
    from audit.errors import UsageError as UsageError
    from audit.mitigation.inference import mitigate_ as mitigate_
    from audit.mitigation.inference import mitigated as mitigated
    from audit.mitigation.inference import unmitigate_ as unmitigate_
    from audit.mitigation.methods.attenuate import Attenuate as Attenuate
    from audit.mitigation.methods.bands import RunBands as RunBands
    from audit.mitigation.methods.bands import load_run_bands as load_run_bands
    from audit.mitigation.methods.delayed_guidance import DelayedGuidance as DelayedGuidance
    from audit.mitigation.methods.dilute import Dilute as Dilute
    from audit.mitigation.methods.padding import Padding as Padding
    from audit.mitigation.methods.rescale import Rescale as Rescale
    from audit.mitigation.methods.stabilise import Stabilise as Stabilise
    from audit.mitigation.methods.weak_guidance import WeakGuidance as WeakGuidance
    from audit.mitigation.run_bands import fit_run_bands as fit_run_bands
    from audit.mitigation.training import TrainingGuard as TrainingGuard
    from audit.models.loading import load_model as load_model
    from audit.models.model import Model as Model
    from audit.scoring.generation import generate as generate
    from audit.scoring.screening import screen as screen

_HOME = {
    "AuditError": "errors",
    "UsageError": "errors",
    "caption_groups": "duplicates.captions",
    "caption_id": "duplicates.captions",
    "mitigate_": "mitigation.inference",
    "mitigated": "mitigation.inference",
    "unmitigate_": "mitigation.inference",
    "Attenuate": "mitigation.methods.attenuate",
    "RunBands": "mitigation.methods.bands",
    "load_run_bands": "mitigation.methods.bands",
    "DelayedGuidance": "mitigation.methods.delayed_guidance",
    "Dilute": "mitigation.methods.dilute",
    "Padding": "mitigation.methods.padding",
    "Rescale": "mitigation.methods.rescale",
    "Stabilise": "mitigation.methods.stabilise",
    "WeakGuidance": "mitigation.methods.weak_guidance",
    "fit_run_bands": "mitigation.run_bands",
    "Model": "models.model",
    "load_model": "models.loading",
    "screen": "scoring.screening",
    "TrainingGuard": "mitigation.training",
    "generate": "scoring.generation",
    "Calibration": "calibration.calibration",
    "calibrate": "calibration.calibration",
    "load_calibration": "calibration.calibration",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    return getattr(import_module(f"audit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
