"""Load a trained model of PlantedBench."""

from __future__ import annotations

from pathlib import Path

import torch

import audit


def load(folder: Path) -> audit.Model:
    """Load a trained model, its networks in the memory layout in which a CPU generates a tenth faster.

    Args:
        folder: The folder of the model.
    """
    model = audit.load_model(folder / "model")
    for network in model.networks.values():
        network.to(memory_format=torch.channels_last)
    return model
