"""Load weights into a network strictly: each tensor of the network is in the file, and each tensor of the file is used.

Anything else is an error that names the tensors and the likely cause.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from audit.errors import AuditError, first_line
from audit.models.files import few

# Prefixes that wrappers of a module add to the names of its weights. No library recognises weights saved like that.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DistributedDataParallel",
}
# Traces of PEFT in weights that were saved with an adapter in them.
_ADAPTER = re.compile(r"(^|\.)(base_layer|lora_[AB]|lora_(down|up)|lora_magnitude_vector|base_model\.model)(\.|$)")
# Keys in published text encoders besides the text model: buffers of older transformers, and the rest of a CLIP model.
_NOT_TEXT = re.compile(
    r"(^|\.)embeddings\.position_ids$|(^|\.)(vision_model|visual_projection|text_projection|logit_scale)(\.|$)"
)


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of .safetensors files, mapped into memory. Raise AuditError if a file is damaged."""
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    found[key] = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], component: str, where: str, dtype: torch.dtype) -> None:
    """Load tensors into a network that has none yet (on the `meta` device).

    Args:
        module: The network; its tensors are replaced.
        tensors: Tensors by their names in the file.
        component: `unet`, `vae` or `text_encoder`.
        where: The file or folder, for errors.
        dtype: Dtype to load the tensors in.

    Raises:
        AuditError: A tensor is missing, unexpected, quantized, of another shape, or contains NaN or infinity.
    """
    expected = module.state_dict()
    found = _named(module, tensors, component, where)
    _check_names(found, expected, component, where)
    wide = _wide(module) if dtype == torch.float16 else frozenset()
    state = {}
    for name, like in expected.items():
        own = torch.float32 if wide & set(name.split(".")) else dtype
        state[name] = _checked(found.pop(name), like, f"{component}: {name}", where, own)
    module.load_state_dict(state, assign=True)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()


def check_header(module: nn.Module, files: Sequence[Path], component: str, where: str) -> None:
    """Check that the headers of .safetensors files name exactly the tensors of a network, without reading weights.

    Args:
        module: The network, which may be on the `meta` device.
        files: Weights files of the component.
        component: `unet`, `vae` or `text_encoder`.
        where: The folder, for errors.

    Raises:
        AuditError: A file is damaged, or a tensor is missing or unexpected.
    """
    names: list[str] = []
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                names += file.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
    found = _named(module, {name: torch.empty(0) for name in names}, component, where)
    _check_names(found, module.state_dict(), component, where)


def _damaged(path: Path, error: Exception) -> AuditError:
    hint = "The file is damaged or cut short. Download it again."
    return AuditError(f"the model does not load: {first_line(error)}", where=str(path), hint=hint)


def plain_names(
    tensors: Mapping[str, Tensor], component: str, where: str, known: Collection[str] = ()
) -> dict[str, Tensor]:
    """Rename a text encoder's tensors as transformers does, and drop those that are not part of the text model.

    Args:
        tensors: Tensors by their names in the file.
        component: `unet`, `vae`, `text_encoder` and so on; only text encoders are renamed.
        where: The file or folder, for errors.
        known: Names that stay as they are.

    Returns:
        The tensors by the names that transformers gives them.

    Raises:
        AuditError: The weights were saved with an adapter (PEFT) in them.
    """
    adapted = [key for key in tensors if _ADAPTER.search(key)]
    if adapted:
        what = f"{component}: the weights were saved with an adapter (PEFT) in them: {few(adapted)}"
        hint = (
            "Merge the adapter and save again: pipeline.fuse_lora(), pipeline.unload_lora_weights(), "
            "pipeline.save_pretrained(folder); of a PEFT model, merge_and_unload() first."
        )
        raise AuditError(what, where=where, hint=hint)
    if not component.startswith("text_encoder"):
        return dict(tensors)
    kept = {key: tensor for key, tensor in tensors.items() if key in known or not _NOT_TEXT.search(key)}
    return {key if key in known else key.removeprefix("text_model."): tensor for key, tensor in kept.items()}


def state_sha256(module: nn.Module) -> str:
    """Hash the state of a network: the name, dtype, shape and bytes of each of its tensors.

    This takes 0.8 to 1.5 s per GB, once per load (SD 1.5 in float32 has 4.3 GB).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _named(module: nn.Module, tensors: Mapping[str, Tensor], component: str, where: str) -> dict[str, Tensor]:
    """Name the tensors of a file as the network does. Files hold tied weights, such as T5's embeddings, once."""
    found = _renamed(module, plain_names(tensors, component, where, module.state_dict()))
    for name, other in (getattr(module, "all_tied_weights_keys", None) or {}).items():
        for absent, present in ((name, other), (other, name)):
            if absent not in found and present in found:
                found[absent] = found[present]
    return found


def _wide(module: nn.Module) -> frozenset[str]:
    """Return the names of the layers that transformers keeps in float32 because float16 overflows, as in T5."""
    return frozenset(getattr(module, "_keep_in_fp32_modules", None) or ())


def _renamed(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention weights of checkpoints from before diffusers 0.10 (`query`, `proj_attn`)."""
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
    raise AuditError(
        f"{component}: {'; '.join(parts)}", where=where, hint=_remedy(found, expected, missing, unexpected)
    )


def _remedy(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], missing: Set[str], unexpected: Set[str]
) -> str:
    for part, wrapper in _WRAPPERS.items():
        if any(key.startswith(part) or f".{part}" in key for key in unexpected):
            return (
                f"The keys contain {part!r}: the weights were saved while {wrapper} wrapped the model. Save the "
                f"wrapped model with save_pretrained, or remove {part!r} from the keys."
            )
    first = {key.partition(".")[0] for key in unexpected}
    if len(first) == 1 and not found.keys() & expected.keys():
        return (
            f"Every key begins with {first.pop()!r}: save the {len(expected)} weights without it, with save_pretrained."
        )
    if unexpected:
        return "Does config.json belong to these weights? Save the model again with save_pretrained."
    return "The file is incomplete. Download it again, or save the model again with save_pretrained."


def _checked(tensor: Tensor, like: Tensor, name: str, where: str, dtype: torch.dtype) -> Tensor:
    if tensor.shape != like.shape:
        what = f"{name} has the shape {list(tensor.shape)}, but config.json says {list(like.shape)}"
        raise AuditError(what, where=where, hint="Take config.json and weights from the same model.")
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        what = f"{name} is of dtype {str(tensor.dtype).removeprefix('torch.')}: the weights are quantized"
        raise AuditError(what, where=where, hint="Give the weights in float32, float16 or bfloat16.")
    loaded = tensor.to(dtype)
    if not loaded.isfinite().all():
        if tensor.isfinite().all():
            what = f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold"
            raise AuditError(what, where=where, hint="Load the model in float32 or bfloat16.")
        raise AuditError(f"{name} has values that are NaN or infinite", where=where, hint="The checkpoint is broken.")
    return loaded
