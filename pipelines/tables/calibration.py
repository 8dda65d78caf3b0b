"""Read the calibration of a run, and name its working tables."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import audit
from audit.errors import AuditError
from audit.record.ledger import Ledger

if TYPE_CHECKING:
    from audit.calibration.calibration import Calibration


# Working table: the control captions that are not in the dataset.
CONTROL_CAPTIONS = "_control_captions"
NAME = "calibration.json"


def load_calibration(ledger: Ledger) -> Calibration:
    """Return the calibration of a run. Raises AuditError if it has none."""
    content = ledger.read_bytes(NAME)
    if content is None:
        raise AuditError("not found", where=ledger.path(NAME))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(content)
        return audit.load_calibration(path)
