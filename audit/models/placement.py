"""Place the networks of a model on a device. T5 and the denoiser take turns on one that is too small for both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import cpu_offload_with_hook
from torch import nn
from transformers import T5EncoderModel

# Part of an accelerator's free memory that all weights may fill: activations, latents and images need the rest.
SHARE = 0.5


def place_networks(networks: Mapping[str, nn.Module], denoiser: str, device: torch.device) -> bool:
    """Place networks on a device, in eval mode.

    Args:
        networks: The networks by name.
        denoiser: Name of the denoiser.
        device: The device.

    Returns:
        Whether T5 and the denoiser take turns: all weights would fill more than SHARE of the accelerator's free memory.
    """
    for network in networks.values():
        network.eval().requires_grad_(False)
    t5 = [network for network in networks.values() if isinstance(network, T5EncoderModel)]
    turns = bool(t5) and device.type == "cuda" and weights(networks) > SHARE * torch.cuda.mem_get_info(device)[0]
    if turns:
        take_turns(t5[0], networks[denoiser], device)
    for network in networks.values():
        if not turns or network not in (t5[0], networks[denoiser]):
            _move(network, device)
    return turns


def _move(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device, unless it is there: `to` takes a while even if it moves nothing."""
    if any(each.device != device for each in (*network.parameters(), *network.buffers())):
        network.to(device)


def weights(networks: Mapping[str, nn.Module]) -> int:
    """Return the size of all weights in bytes."""
    return sum(each.numel() * each.element_size() for network in networks.values() for each in network.parameters())


def take_turns(one: nn.Module, other: nn.Module, device: torch.device) -> None:
    """Move each of two networks to a device when it runs, after moving the other one to the CPU.

    Args:
        one: A network.
        other: Another network.
        device: The device.
    """
    _, first = cpu_offload_with_hook(one, device)
    _, second = cpu_offload_with_hook(other, device, prev_module_hook=first)
    first.hook.prev_module_hook = second
