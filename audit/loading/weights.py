"""Weights into a network, strictly: every tensor of the network comes from the file, and every tensor of the file goes
into the network. What a training tool adds to the names is taken off; anything else is an error that names the tensor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audit.errors import AuditError, first_line
from audit.loading.files import few

# Put into names by torch.compile, FSDP and activation checkpointing, wherever the wrapped module is.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Put before all names: by DistributedDataParallel, by transformers before version 5, and by trainers' own modules.
_BEFORE = ("module.", "text_model.", "model.", "unet.", "vae.", "text_encoder.")
# Left by PEFT in weights that were saved with an adapter in them.
_ADAPTER = re.compile(r"(^|\.)(base_layer|lora_[AB]|lora_(down|up)|lora_magnitude_vector|base_model\.model)(\.|$)")
# What published text encoders hold besides the text model: buffers of older transformers, and the rest of a CLIP model.
_NOT_TEXT = re.compile(
    r"(^|\.)embeddings\.position_ids$|(^|\.)(vision_model|visual_projection|text_projection|logit_scale)(\.|$)"
)


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of .safetensors files, mapped into memory. Raises AuditError for a file that is damaged."""
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    found[key] = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            what = f"the model does not load: {first_line(error)}"
            raise AuditError(
                what, where=str(path), do="The file is damaged or cut short. Download it again."
            ) from error
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], component: str, where: str, dtype: torch.dtype) -> None:
    """Load tensors into a network that has none yet (on the `meta` device).

    Args:
        module: The network; its tensors are replaced.
        tensors: The tensors by their names in the file.
        component: `unet`, `vae` or `text_encoder`.
        where: The file or folder, for errors.
        dtype: The dtype to load them in.

    Raises:
        AuditError: If a tensor is missing, unexpected, of another shape, quantized, NaN or infinite.
    """
    expected = module.state_dict()
    found = _renamed(module, plain_names(tensors, component, where))
    _check_names(found, expected, component, where)
    state = {}
    for name, like in expected.items():
        state[name] = _checked(found.pop(name), like, f"{component}: {name}", where, dtype)
    module.load_state_dict(state, assign=True)


def plain_names(tensors: Mapping[str, Tensor], component: str, where: str) -> dict[str, Tensor]:
    """Take off what training tools add to names, and leave out what a text encoder's file holds besides it.

    Raises AuditError for weights that were saved with an adapter (PEFT) in them.
    """
    adapted = [key for key in tensors if _ADAPTER.search(key)]
    if adapted:
        what = f"{component}: the weights were saved with an adapter (PEFT) in them: {few(adapted)}"
        do = (
            "Merge the adapter and save again: pipeline.fuse_lora(), pipeline.unload_lora_weights(), "
            "pipeline.save_pretrained(folder); of a PEFT model, merge_and_unload() first."
        )
        raise AuditError(what, where=where, do=do)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        for part in _INSIDE:
            name = name.replace(part, "")
        if component == "text_encoder" and _NOT_TEXT.search(name):
            continue
        if name in found:
            what = f"{component}: it holds two tensors for {name}"
            raise AuditError(what, where=where, do="Save the model again, uncompiled.")
        found[name] = tensor
    while prefix := next((each for each in _BEFORE if found and all(key.startswith(each) for key in found)), None):
        found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def state_sha256(module: nn.Module) -> str:
    """Hash what a network runs: the name, dtype, shape and bytes of each of its tensors.

    It takes about 0.8 s per GB (SD 1.5 in float32: 4.3 GB, 3 to 4 s), once per load.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _renamed(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that diffusers gives the attention of checkpoints before 0.10 (`query`, `proj_attn`)."""
    fix: Any = getattr(module, "_fix_state_dict_keys_on_load", None)
    return tensors if fix is None else dict(fix(tensors))


def _check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], component: str, where: str) -> None:
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(expected)} weights are missing ({few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} weights belong to no layer ({few(unexpected)})")
    if not found.keys() & expected.keys():
        do = "No key is that of a layer: was it saved from a wrapped model? Save the plain model by save_pretrained."
    elif unexpected:
        do = "Does config.json belong to these weights? Save the model again by save_pretrained."
    else:
        do = "The file is incomplete. Download it again, or save the model again by save_pretrained."
    raise AuditError(f"{component}: {'; '.join(parts)}", where=where, do=do)


def _checked(tensor: Tensor, like: Tensor, name: str, where: str, dtype: torch.dtype) -> Tensor:
    if tensor.shape != like.shape:
        what = f"{name} has the shape {list(tensor.shape)}, and config.json says {list(like.shape)}"
        raise AuditError(what, where=where, do="Take config.json and weights from the same model.")
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        what = f"{name} is of dtype {str(tensor.dtype).removeprefix('torch.')}: the weights are quantized"
        raise AuditError(what, where=where, do="Give the weights in float32, float16 or bfloat16.")
    loaded = tensor.to(dtype)
    if not loaded.isfinite().all():
        if tensor.isfinite().all():
            what = f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold"
            raise AuditError(what, where=where, do="Load the model in float32 or bfloat16.")
        raise AuditError(f"{name} has values that are NaN or infinite", where=where, do="The checkpoint is broken.")
    return loaded
