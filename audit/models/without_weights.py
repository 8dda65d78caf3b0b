"""Run a diffusers pipeline whose networks have no weights, to count what it would compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

CPU, META = torch.device("cpu"), torch.device("meta")


def without_weights(pipeline: Any, networks: Mapping[str, nn.Module]) -> Any:
    """Let a pipeline run with networks on the `meta` device.

    Pipelines look at the values of times and masks, which tensors on `meta` do not have. So the pipeline works on the
    CPU. A network's inputs are moved to `meta`, and its outputs come back as zeros. Text encoders take no mask of
    padding there, because transformers looks at its values; this changes nothing that is counted.

    Args:
        pipeline: The pipeline.
        networks: Its networks by name.
    """
    on_cpu = property(lambda self: CPU)
    pipeline.__class__ = type(
        type(pipeline).__name__, (type(pipeline),), {"device": on_cpu, "_execution_device": on_cpu}
    )
    for name, network in networks.items():
        unmasked = {"attention_mask": None} if name.startswith("text_encoder") else {}

        def enter(
            _: Any, args: Any, kwargs: dict[str, Any], unmasked: dict[str, None] = unmasked
        ) -> tuple[Any, dict[str, Any]]:
            return _moved(args), _moved(kwargs | unmasked)

        network.register_forward_pre_hook(enter, with_kwargs=True)
        network.register_forward_hook(lambda _, args, output: zeros(output))
    vae: Any = networks["vae"]
    decode = vae.decode
    vae.decode = lambda *args, **kwargs: zeros(decode(*_moved(args), **_moved(kwargs)))
    return pipeline


def _moved(tensors: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(META), tensors)


def zeros(tensors: Any) -> Any:
    """Return zeros on the CPU in place of tensors on `meta`."""
    return tree_map_only(Tensor, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), tensors)
