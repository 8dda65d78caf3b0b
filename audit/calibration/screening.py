"""Screen captions as the control captions of a calibration were screened."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from audit.calibration.calibration import Calibration
from audit.models.model import Model
from audit.scoring.progress import Progress
from audit.scoring.screening import Unconditional, screen


def screen_as(
    calibration: Calibration,
    model: Model,
    captions: Sequence[str],
    batch_size: int | None = None,
    reference: Model | None = None,
    progress: Progress | None = None,
    unconditional: Unconditional | None = None,
) -> pa.Table:
    """Screen captions with the detector, the seeds and the resolution of a calibration.

    Args:
        calibration: Calibration of a screening detector.
        model: The model to screen with.
        captions: Captions to score.
        batch_size: Rows per forward; by default as many as fit in memory.
        reference: Reference model, if the calibration was made with one.
        progress: Called after each batch of rows.
        unconditional: As for `audit.screen`.

    Returns:
        A table that `calibration.score` accepts if the model is the calibration's.

    Raises:
        UsageError: The captions or the batch size are invalid, or the UNet cannot take the calibration's resolution.
        AuditError: The model has too few cross-attention layers for the detector.
    """
    _, height, width = calibration.context["latent shape"]
    scale = model.pixels_per_latent
    return screen(
        model,
        captions,
        calibration.context["seeds"],
        (calibration.detector,),
        batch_size,
        reference,
        progress,
        # The model's own resolution need not be one that `screen` would accept as a setting.
        resolution=None if (height, width) == model.latent_shape[1:] else (scale * height, scale * width),
        unconditional=unconditional,
    )
