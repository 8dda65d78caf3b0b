"""Copy tensors between the host and a GPU without making the host wait.

A GPU works through a queue. An ordinary copy blocks the host until the queue is empty, so the GPU is idle while the
host prepares the next batch. Copies to and from pinned memory are queued like other work and do not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. A copy to a CUDA device does not block."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Mapping[str, Tensor], device: torch.device) -> Callable[[], dict[str, npt.NDArray[Any]]]:
    """Start copying tensors from a device to the host.

    Args:
        tensors: The tensors by name.
        device: The device that they are on.

    Returns:
        A function that waits for the copies, but not for work that was queued after them, and returns them as arrays.
    """
    if device.type != "cuda":
        return lambda: {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}  # torch pins them
    copied = torch.cuda.current_stream(device).record_event()

    def arrived() -> dict[str, npt.NDArray[Any]]:
        copied.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return arrived
