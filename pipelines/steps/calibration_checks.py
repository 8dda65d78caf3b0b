"""Check that there are enough control captions."""

from __future__ import annotations

from audit.errors import AuditError
from audit.statistics.intervals import controls_needed
from pipelines.configuration.config import Config
from pipelines.reading import precomputed
from pipelines.reading.control_captions import read_control_captions


def check(config: Config) -> None:
    """Raise AuditError before any work if the calibration cannot succeed.

    It cannot if a file is missing, a precomputed screen lacks a column or there are too few control captions.
    """
    if config.calibration.screen is not None:
        precomputed.check(config.calibration.screen, config.screen.detectors[0], config.screen.seeds)
    require_enough(config, len(read_control_captions(config.calibration.captions, config.calibration.column)))


def require_enough(config: Config, rows: int) -> None:
    """Raise AuditError if `rows` control captions are too few for `confirm.control_rate`."""
    rate = config.confirm.control_rate
    need = 2 * controls_needed(rate)  # one half sets the thresholds
    if config.images is not None and rows < need:
        raise AuditError(
            f"{rows} control captions are not in the dataset; confirm.control_rate {rate:g} needs {need}",
            where=config.calibration.captions,
            hint="Give more control captions, or raise confirm.control_rate.",
        )
