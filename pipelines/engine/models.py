"""Load the models that a configuration names. Models at a URI are copied to this machine first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.configuration.inputs import ModelFiles
from pipelines.engine.imports import no_collector
from pipelines.reading.local_copies import fetched

if TYPE_CHECKING:
    import torch

    from audit.models.model import Model


def load(files: ModelFiles, lora: str | None, device: str, dtype: torch.dtype, compile: bool = False) -> Model:
    """Load a model of a configuration.

    Args:
        files: The files of the model, and how to read them.
        lora: LoRA weights to add, or None.
        device: The torch device.
        dtype: The data type of the model.
        compile: Whether to compile blocks of the denoiser.

    Returns:
        The model, on `device`.

    Raises:
        AuditError: As `audit.load_model`.
    """
    with no_collector():
        from audit.models.loading import load_model
        from audit.models.textual_inversion import TextualInversion

    return load_model(
        fetched(files.path),
        device,
        dtype,
        config=None if files.config is None else fetched(files.config, weights=False),
        lora=None if lora is None else fetched(lora),
        resolution=_resolution(files),
        prediction_type=files.prediction_type,
        textual_inversion=[TextualInversion(fetched(each.path), each.token) for each in files.textual_inversion],
        variant=files.variant,
        compile=compile,
    )


def outline(files: ModelFiles) -> Model:
    """Build a model of a configuration without its weights (`audit.costs.meta_networks.outline_model`)."""
    with no_collector():
        from audit.costs.meta_networks import outline_model

    config = None if files.config is None else fetched(files.config, weights=False)
    return outline_model(fetched(files.path, weights=False), config, _resolution(files), files.prediction_type)


def _resolution(files: ModelFiles) -> int | tuple[int, int] | None:
    found = files.resolution
    return (found[0], found[1]) if isinstance(found, list) else found
