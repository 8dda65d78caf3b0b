"""Check that there are enough control captions."""

from __future__ import annotations

from audit.errors import AuditError
from audit.statistics.intervals import controls_needed
from pipelines.configuration.config import Config
from pipelines.reading import precomputed
from pipelines.reading.control_captions import read_control_captions


def check(config: Config) -> None:
    """Raise AuditError before any work if a file is missing, a precomputed screen lacks a column or the control
    captions are too few."""
    if config.calibration.screen is not None:
        precomputed.check(config.calibration.screen, config.screen.detectors[0], config.screen.seeds)
    require_enough(config, len(read_control_captions(config.calibration.captions, config.calibration.column)))


def require_enough(config: Config, rows: int) -> None:
    rate = config.confirm.control_rate
    need = controls_needed(rate)
    if config.images is not None and rows < need:
        raise AuditError(
            f"{rows} control captions that the data set does not have; confirm.control_rate {rate:g} needs {need}",
            where=config.calibration.captions,
            hint="Give more, or raise confirm.control_rate.",
        )
