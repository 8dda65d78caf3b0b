"""Load a single .safetensors file in the original layout of Stable Diffusion 1.x, 2.x or XL, offline.

The family is inferred from the names and shapes in the file's header. Its configurations are those published with the
family, stored in `configs/`. A diffusers folder passed as `config` replaces them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils as ldm
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audit.errors import AuditError, first_line
from audit.models.architecture import SUPPORTED
from audit.models.files import CONVERT_SINGLE, few, sha256_of
from audit.models.model import Model
from audit.models.networks import empty_networks, folder_configs, folder_tokenizers
from audit.models.schedulers import record, resolve
from audit.models.sd import StableDiffusion
from audit.models.sdxl import StableDiffusionXL
from audit.models.vocabulary import clip_tokenizer
from audit.models.weights import fill, read_tensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# Keys that belong to no network and that diffusers ignores too: averaged weights, the noise schedule, training state,
# and the markers of fine-tunes.
_BESIDE = re.compile(
    r"model_ema\.|(alphas|betas|sqrt|log|posterior|ddim|lvlb)(_|$)|(alphas_cumprod|logvar|scale_factor|global_step)|"
    r"(denoiser|embedding_manager)\.|first_stage_model\.(loss|model_ema)\.|(v_pred|ztsnr)$|"
    r"(cond_stage_model|conditioner\.embedders\.\d)\.(model\.|transformer\.)?(logit_scale|attn_mask)$"
)
_OPEN_CLIP_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


@dataclass(frozen=True)
class Layout:
    """Where the files of a family keep each network.

    Attributes:
        kind: The name that diffusers gives the type of a file, which is also that of its configurations.
        family: The family.
        title: What the family is called.
        prefixes: The beginning of the names of each network's tensors.
    """

    kind: str
    family: type[Model]
    title: str
    prefixes: Mapping[str, str]


_SD = {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model."}
_XL = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."}
_LAYOUTS = (
    Layout("v1", StableDiffusion, "Stable Diffusion 1.x", _SD),
    Layout("v2", StableDiffusion, "Stable Diffusion 2.x", _SD),
    Layout("xl_base", StableDiffusionXL, "Stable Diffusion XL", _SD | _XL),
)
LAYOUTS = {layout.kind: layout for layout in _LAYOUTS}


def load_single_file(
    header: Mapping[str, Tensor], layout: Layout, file: Path, dtype: torch.dtype, config: Path | None
) -> tuple[dict[str, Any], dict[str, str], dict[str, bool]]:
    """Load a single file.

    Args:
        header: Names and shapes of the file's tensors, from `read_header`.
        layout: Its layout, from `single_file_layout`.
        file: The file.
        dtype: Dtype to load the weights in.
        config: A diffusers folder with configurations and tokenizers; None for those of the file's family.

    Returns:
        The parts (networks and tokenizers by name, `scheduler_config`, `settings`, `about`), the sha256 of each network
        and tokenizer, and the markers of the prediction type.

    Raises:
        AuditError: The file is incomplete, has weights of no part, or its weights do not fit.
    """
    configs, tokenizers = single_file_configs(layout, config)
    networks = empty_networks(layout.family, configs, str(file))
    layout.family.check(networks | tokenizers, str(file))
    tensors = {key: tensor for key, tensor in read_tensors([file]).items() if not _BESIDE.match(key)}
    extra = [key for key in tensors if not key.startswith(tuple(layout.prefixes.values()))]
    if extra:
        what = f"{len(extra)} weights belong to no part of {layout.title} ({few(extra)})"
        raise AuditError(what, where=str(file), hint=f"Save the model as a diffusers folder. {SUPPORTED}")
    for name, prefix in layout.prefixes.items():
        own = {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
        renamed = converted(name, own, prefix, networks[name], configs[name], str(file))
        fill(networks[name], renamed, name, str(file), dtype)
    hashes = dict.fromkeys(networks, sha256_of([file]))
    for name, tokenizer in tokenizers.items():
        hashes[name] = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
    parts = networks | tokenizers | {"scheduler_config": configs["scheduler"], "settings": configs["settings"]}
    parts["about"] = {"scheduler": configs["scheduler_record"], "files_not_read": []}
    return parts, hashes, {name: name in header for name in ("v_pred", "ztsnr")}


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the names and shapes of a file's tensors, as tensors on the `meta` device.

    Raises:
        AuditError: The file is not a .safetensors file.
    """
    if file.suffix != ".safetensors":
        what = f"a single-file model must be .safetensors, not {file.suffix!r}"
        raise AuditError(what, where=str(file), hint=CONVERT_SINGLE, kind="pickle")
    try:
        with safe_open(file, "pt") as content:
            shapes = {key: content.get_slice(key).get_shape() for key in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        what = f"the model does not load: {first_line(error)}"
        raise AuditError(what, where=str(file), hint="The file is damaged or cut short. Download it again.") from error
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def single_file_layout(header: Mapping[str, Tensor], file: Path) -> Layout:
    """Tell the family of a single file, and where it keeps the networks.

    Args:
        header: Names and shapes of the file's tensors, from `read_header`.
        file: The file, for errors.

    Raises:
        AuditError: The file belongs to a family that is not supported, or lacks a network.
    """
    kind = _kind(header)
    if f"{UNET}input_blocks.0.0.weight" not in header:
        hint = "Give a diffusers folder, or a single file that holds the whole model."
        raise AuditError(f"the model does not load: {_what_else(header, kind)}", where=str(file), hint=hint)
    if kind not in LAYOUTS:
        raise AuditError(f"this is {_named(kind)}", where=str(file), hint=SUPPORTED, kind="unsupported_model")
    for name, prefix in LAYOUTS[kind].prefixes.items():
        if not any(key.startswith(prefix) for key in header):
            part = "VAE" if name == "vae" else "text encoder"
            hint = "Give a file that holds the whole model, or a diffusers folder."
            raise AuditError(f"there is no {part} in this file", where=str(file), hint=hint)
    return LAYOUTS[kind]


def single_file_configs(layout: Layout, config: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations and tokenizers of a single file: those of its family, or of a diffusers folder.

    Args:
        layout: The file's layout, from `single_file_layout`.
        config: A diffusers folder; None for the configurations of the family.

    Returns:
        The configuration of each part of the model, and the tokenizers, by the part's name.
    """
    family = layout.family
    if config is not None:
        return folder_configs(family, config), folder_tokenizers(family, config)
    content = resources.files("audit.models").joinpath(f"configs/{layout.kind}.json").read_text(encoding="utf-8")
    configs: dict[str, Any] = json.loads(content)
    tokenizers = {name: clip_tokenizer(pad_token) for name, pad_token in configs.pop("pad_tokens").items()}
    written = configs["scheduler"]
    configs["scheduler"] = resolve(written, written["_class_name"])
    configs["scheduler_record"] = record(written, written["_class_name"])
    return configs | {"settings": dict(family.SETTINGS)}, tokenizers


def _kind(header: Mapping[str, Tensor]) -> str:
    """Return the type of a file, by the name that diffusers gives it."""
    try:
        kind: str = ldm.infer_diffusers_model_type(dict(header))
    except Exception:  # infer_diffusers_model_type reads values and shapes of other families' tensors
        return "unknown"
    return kind


def _named(kind: str) -> str:
    known: Any = ldm.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    like = known.get("pretrained_model_name_or_path")
    return f"a model of the family {kind}" + (f", as {like}" if like else "")


def _what_else(header: Mapping[str, Tensor], kind: str) -> str:
    """Describe a file that has no UNet in the original layout."""
    if kind not in LAYOUTS:
        return f"this is {_named(kind)}. {SUPPORTED}"
    if any("lora_" in key or ".lora" in key for key in header):
        return "these are LoRA weights: set `lora` to this file, and `model` to the model that it belongs to"
    if "emb_params" in header or len(header) == 1:
        return "this is a textual inversion: add it to model.textual_inversion"
    if any(key.startswith("down_blocks.") for key in header):
        return "these are the weights of one component of a diffusers folder"
    return "there is no UNet in this file"


def converted(
    name: str,
    tensors: dict[str, Tensor],
    prefix: str,
    network: nn.Module,
    config: Mapping[str, Any],
    where: str,
) -> dict[str, Tensor]:
    """Rename the tensors of one network as diffusers does.

    Args:
        name: Name of the network.
        tensors: Its tensors in the file.
        prefix: The beginning of their names.
        network: The network, without weights.
        config: Its configuration.
        where: The file, for errors.

    Raises:
        AuditError: A tensor cannot be renamed.
    """
    if name not in ("unet", "vae"):
        return _converted_text(name, tensors, prefix, network, where)
    convert: Any = ldm.convert_ldm_unet_checkpoint if name == "unet" else ldm.convert_ldm_vae_checkpoint
    try:
        found: dict[str, Tensor] = convert(dict(tensors), config=dict(config))
    except (KeyError, IndexError, ValueError) as error:
        what = f"{name}: a weight is missing or of another shape ({first_line(error)})"
        raise AuditError(what, where=where, hint="The file is incomplete, or of another architecture.") from error
    kept = {tensor.data_ptr() for tensor in found.values()}
    _check_converted(name, [key for key, tensor in tensors.items() if tensor.data_ptr() not in kept], where)
    return found


def _converted_text(
    name: str, tensors: dict[str, Tensor], prefix: str, network: nn.Module, where: str
) -> dict[str, Tensor]:
    clip, open_clip = f"{prefix}transformer.", f"{prefix}model."  # the layouts of transformers and of open_clip
    if any(key.startswith(clip) for key in tensors):
        _check_converted(name, [key for key in tensors if not key.startswith(clip)], where)
        return {key.removeprefix(clip): tensor for key, tensor in tensors.items()}
    known = tuple(f"{open_clip}{part}" for part in _OPEN_CLIP_PARTS)
    _check_converted(name, [key for key in tensors if not key.startswith(known)], where)
    if not hasattr(network, "text_projection"):  # SD 2.x's text encoder lacks it, and the last block, unlike its files
        tensors.pop(f"{open_clip}text_projection", None)
    found: dict[str, Tensor] = ldm.convert_open_clip_checkpoint(network, tensors, prefix=open_clip)
    return found


def _check_converted(name: str, lost: Sequence[str], where: str) -> None:
    if lost:
        what = f"{name}: {len(lost)} weights belong to no layer ({few(lost)})"
        raise AuditError(what, where=where, hint=SUPPORTED)
