"""Audit a text-to-image diffusion model for memorized training images.

Names load lazily: `import audit.schema` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.calibration import Calibration as Calibration
    from audit.calibration import calibrate as calibrate
    from audit.calibration import load_calibration as load_calibration
    from audit.captions import caption_groups as caption_groups
    from audit.captions import caption_id as caption_id
    from audit.errors import AuditError as AuditError
    from audit.errors import UsageError as UsageError
    from audit.generation import generate as generate
    from audit.mitigation import mitigate_ as mitigate_
    from audit.mitigation import mitigated as mitigated
    from audit.mitigation import unmitigate_ as unmitigate_
    from audit.model import Model as Model
    from audit.model import load_model as load_model
    from audit.screening import screen as screen
    from audit.training import TrainingGuard as TrainingGuard

_HOME = {
    "AuditError": "errors",
    "UsageError": "errors",
    "caption_groups": "captions",
    "caption_id": "captions",
    "mitigate_": "mitigation",
    "mitigated": "mitigation",
    "unmitigate_": "mitigation",
    "Model": "model",
    "load_model": "model",
    "screen": "screening",
    "TrainingGuard": "training",
    "generate": "generation",
    "Calibration": "calibration",
    "calibrate": "calibration",
    "load_calibration": "calibration",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'audit' has no attribute {name!r}")
    return getattr(import_module(f"audit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
