"""Merge LoRA weights into a model: W + alpha / rank · up · down (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audit.errors import AuditError
from audit.models.lora_names import Layer, named_layers, plain

# Shapes: R rank, I inputs and O outputs of a layer (for a convolution, inputs times kernel size).

SUPPORTED = (
    "Supported: plain LoRA of denoiser and text encoders, as diffusers, peft or kohya write it, in .safetensors."
)
# Files written by PEFT's save_pretrained: the weights, and the configuration that their scale depends on.
PEFT_WEIGHTS, PEFT_CONFIG, PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# Names of `down` and `up` in peft, in diffusers, in its older processors and in kohya.
_FACTOR = re.compile(r"[._]lora(?:_linear_layer)?[._](?P<factor>A|B|down|up)(?:\.weight)?$")
_FACTORS = {"A": "down", "B": "up"}


def add_lora(path: str | Path, components: Mapping[str, nn.Module]) -> None:
    """Add LoRA weights to the layers of a model, in place and at full strength.

    Args:
        path: A .safetensors file, or a folder written by PEFT (adapter_model.safetensors and adapter_config.json).
        components: The denoiser and the text encoders, by name.

    Raises:
        AuditError: The file is of another kind, or its weights are not LoRA, match no layer, or are not finite.
    """
    layers = named_layers(components)
    tensors, metadata = _read(lora_files(path)[0], components)
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, role = _role(_of_component(key, components, layers))
        if not tensor.isfinite().all():
            raise AuditError(f"{key} has values that are NaN or infinite", where=str(path), hint="Train it again.")
        if name not in layers or role in found[name]:
            raise AuditError(f"{key} belongs to no layer of this model", where=str(path), hint=SUPPORTED)
        found[name][role] = tensor
    changed: set[nn.Module] = set()
    for name, parts in found.items():
        component, own = layers[name]
        if not changed.isdisjoint(own):
            what = f"it adds to the layer {name} under another name too"
            raise AuditError(what, where=str(path), hint="Remove the weights that repeat others from the file.")
        changed.update(own)
        alpha = float(parts["alpha"]) if "alpha" in parts else metadata.get(f"{component}.lora_alpha")
        try:
            _add(own, parts["down"], parts["up"], alpha)
        except (KeyError, IndexError, RuntimeError) as error:
            what = f"its weights do not fit the layer {name}: {error}"
            raise AuditError(what, where=str(path), hint=SUPPORTED) from error


@torch.no_grad()
def _add(layers: Sequence[Layer], down: Tensor, up: Tensor, alpha: float | None) -> None:
    """Add LoRA to layers with the same inputs, whose outputs stand one after the other in `up`."""
    like = layers[0].weight
    wide = torch.promote_types(like.dtype, torch.float32)
    down_RI, up_OR = (each.to(like.device, wide).flatten(1) for each in (down, up))
    scale = 1.0 if alpha is None else alpha / len(down_RI)
    outputs = [len(layer.weight) for layer in layers]
    for layer, own_OR in zip(layers, up_OR.split(outputs), strict=True):
        added = scale * (own_OR @ down_RI)
        layer.weight.copy_(layer.weight.to(wide) + added.reshape(layer.weight.shape))


def lora_files(path: str | Path) -> list[Path]:
    """List the files of LoRA weights: the weights, then the configuration if PEFT wrote one."""
    file = Path(path) / PEFT_WEIGHTS if Path(path).is_dir() else Path(path)
    config = file.with_name(PEFT_CONFIG)
    return [file, config] if file.name == PEFT_WEIGHTS and config.is_file() else [file]


def _of_component(key: str, components: Iterable[str], layers: Container[str]) -> str:
    """Add the component's name to a PEFT key, which does not say it: the component that has such a layer."""
    if not key.startswith(PEFT_PREFIX):
        return key
    named = [f"{component}.{key.removeprefix(PEFT_PREFIX)}" for component in components]
    found = [name for name in named if _role(name)[0] in layers]
    if len(found) > 1:
        hint = "Save it with the pipeline's save_lora_weights, whose names say where each layer belongs."
        raise AuditError(f"several networks of this model have the layer of {key}", hint=hint)
    return found[0] if found else key


def _read(path: Path, components: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Read the tensors, and the adapter's settings that diffusers stores with them."""
    if path.suffix != ".safetensors" or not path.is_file():
        hint = "Give the file, or the folder that PEFT wrote, with adapter_model.safetensors in it."
        raise AuditError("LoRA weights are one .safetensors file", where=str(path), hint=hint)
    try:
        with safe_open(path, "pt") as file:
            adapter = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise AuditError(f"does not load: {error}", where=str(path), hint="Is the file damaged?") from error
    for key, value in adapter.items():
        if key.endswith((".alpha_pattern", ".use_dora", ".use_rslora")) and value:
            raise AuditError(f"it has {key.rpartition('.')[2]}", where=str(path), hint=SUPPORTED)
    if any(key.startswith(PEFT_PREFIX) for key in tensors):
        adapter = dict.fromkeys((f"{component}.lora_alpha" for component in components), _peft_alpha(path))
    return tensors, adapter


def _peft_alpha(path: Path) -> float:
    """Read the alpha of an adapter written by PEFT from the configuration next to the weights."""
    file = path.with_name(PEFT_CONFIG)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        alpha = float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"PEFT wrote these weights, but their strength is unknown because {PEFT_CONFIG} is not next to them"
        raise AuditError(
            what, where=str(path), hint=f"Give the folder that holds both (set lora to it). {SUPPORTED}"
        ) from error
    extra = [name for name in ("alpha_pattern", "use_dora", "use_rslora", "fan_in_fan_out") if config.get(name)]
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        extra.append(f"peft_type {kind}")
    if config.get("bias", "none") != "none":
        extra.append(f"bias {config['bias']}")
    if extra:
        raise AuditError(f"it has {', '.join(extra)}", where=str(file), hint=SUPPORTED)
    return alpha


def _role(key: str) -> tuple[str, str]:
    """Split a key into the layer's normalised name and the role of the tensor in that layer."""
    if key.endswith(".alpha"):
        return plain(key.removesuffix(".alpha")), "alpha"
    match = _FACTOR.search(key)
    if match is None:
        return key, "?"
    factor = match["factor"]
    return plain(key[: match.start()]), _FACTORS.get(factor, factor)
