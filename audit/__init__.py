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
    from audit.mitigation.training import TrainingGuard as TrainingGuard
    from audit.models.model import Model as Model
    from audit.models.model import load_model as load_model
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
    "Model": "models.model",
    "load_model": "models.model",
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
