"""LoRA weights, added to those of a model: W + alpha / rank · up · down (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audit.errors import AuditError

# Shapes: R rank, I inputs and O outputs of a layer (of a convolution: times its window).

SUPPORTED = "Supported: plain LoRA of UNet and text encoder, as diffusers, peft or kohya write it, in .safetensors."
# `down` and `up` as they are called by peft, by diffusers, by its older processors and by kohya.
_FACTOR = re.compile(r"[._]lora(?:_linear_layer)?[._](?P<factor>A|B|down|up)(?:\.weight)?$")
_FACTORS = {"A": "down", "B": "up"}


def add_lora(path: str | Path, components: Mapping[str, nn.Module]) -> None:
    """Adds the LoRA weights of a .safetensors file to the layers of `components` (`unet`, `text_encoder`), in place.

    Raises AuditError for another kind of file, and for weights that are no LoRA or belong to no layer.
    """
    tensors, metadata = _read(Path(path))
    layers = {
        _plain(f"{component}.{name}"): layer
        for component, module in components.items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, role = _role(key)
        if name not in layers or role in found[name]:
            raise AuditError(f"{key} belongs to no layer of this model", where=str(path), do=SUPPORTED)
        found[name][role] = tensor
    for name, parts in found.items():
        component = "unet" if name.startswith("unet") else "text_encoder"
        try:
            _add(layers[name], parts["down"], parts["up"], _alpha(parts, metadata, component))
        except (KeyError, RuntimeError) as error:
            what = f"its weights do not fit the layer {name}: {error}"
            raise AuditError(what, where=str(path), do=SUPPORTED) from error


@torch.no_grad()
def _add(layer: nn.Linear | nn.Conv2d, down: Tensor, up: Tensor, alpha: float | None) -> None:
    down_RI, up_OR = down.float().flatten(1), up.float().flatten(1)
    scale = 1.0 if alpha is None else alpha / len(down_RI)
    layer.weight += (scale * (up_OR @ down_RI)).reshape(layer.weight.shape).to(layer.weight.dtype)


def _alpha(parts: Mapping[str, Tensor], metadata: Mapping[str, float], component: str) -> float | None:
    return float(parts["alpha"]) if "alpha" in parts else metadata.get(f"{component}.lora_alpha")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors, and what diffusers writes of the adapter beside them."""
    if path.suffix != ".safetensors" or not path.is_file():
        raise AuditError("LoRA weights are one .safetensors file", where=str(path), do="Give another path.")
    try:
        with safe_open(path, "pt") as file:
            adapter = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise AuditError(f"does not load: {error}", where=str(path), do="Is the file damaged?") from error
    for key, value in adapter.items():
        if key.endswith((".alpha_pattern", ".use_dora", ".use_rslora")) and value:
            raise AuditError(f"it has {key.rpartition('.')[2]}", where=str(path), do=SUPPORTED)
    return tensors, adapter


def _role(key: str) -> tuple[str, str]:
    """(the layer's plain name, what the tensor is to it)."""
    if key.endswith(".alpha"):
        return _plain(key.removesuffix(".alpha")), "alpha"
    match = _FACTOR.search(key)
    if match is None:
        return key, "?"
    factor = match["factor"]
    return _plain(key[: match.start()]), _FACTORS.get(factor, factor)


def _plain(name: str) -> str:
    """A layer's name in one spelling: kohya has no points, transformers of today no `text_model`."""
    name = re.sub(r"^lora_te1?_", "text_encoder.", re.sub(r"^lora_unet_", "unet.", name))
    name = name.replace(".processor.", ".").replace("text_model", "").replace(".", "_")
    name = re.sub(r"_to_out$", "_to_out_0", name)
    return re.sub(r"_+", "_", name)
