"""Load a single .safetensors file in Stable Diffusion's original layout, as found on model-sharing sites, offline.

The family is inferred from the names and shapes in the file's header. Its configurations are those published with the
family, stored in `configs/`. A diffusers folder passed as `config` replaces them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
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
from audit.models.networks import empty_networks, folder_configs, folder_tokenizers
from audit.models.schedulers import record, resolve
from audit.models.sd import StableDiffusion
from audit.models.vocabulary import clip_tokenizer
from audit.models.weights import fill, read_tensors

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.", f"{TEXT}model."
# Keys that belong to none of the three networks and that diffusers ignores too: averaged weights, the noise schedule,
# training state, and the markers of fine-tunes.
_BESIDE = re.compile(
    r"model_ema\.|(alphas|betas|sqrt|log|posterior|ddim|lvlb)(_|$)|(alphas_cumprod|logvar|scale_factor|global_step)|"
    r"(denoiser|embedding_manager)\.|cond_stage_model\.(model\.|transformer\.)?(logit_scale|attn_mask)$|"
    r"first_stage_model\.(loss|model_ema)\.|(v_pred|ztsnr)$"
)
_OPEN_CLIP_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
_FAMILIES = {"v1": "Stable Diffusion 1.x", "v2": "Stable Diffusion 2.x"}


def load_single_file(
    file: Path, dtype: torch.dtype, config: Path | None
) -> tuple[dict[str, Any], dict[str, str], dict[str, bool]]:
    """Load a single file.

    Args:
        file: The file.
        dtype: Dtype to load the weights in.
        config: A diffusers folder with configurations and tokenizer; None for those of the file's family.

    Returns:
        The parts (`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler_config`, `about`), the sha256 of each, and
        the markers of the prediction type (`markers`).

    Raises:
        AuditError: The file is not .safetensors, belongs to another family, is incomplete, or its weights do not fit.
    """
    header = read_header(file)
    configs = single_file_configs(header, file, config)
    networks = empty_networks(StableDiffusion, configs, str(file))
    if config is None:
        tokenizer = clip_tokenizer(configs["pad_token"])
    else:
        tokenizer = folder_tokenizers(StableDiffusion, config)["tokenizer"]
    StableDiffusion.check(networks | {"tokenizer": tokenizer}, str(file))
    tensors = read_tensors([file])
    split = {prefix: _below(tensors, prefix) for prefix in (UNET, VAE, TEXT)}
    beside = [key for key in tensors if not key.startswith((UNET, VAE, TEXT)) and not _BESIDE.match(key)]
    if beside:
        what = f"{len(beside)} weights belong to no part of {_FAMILIES[_family(header)]} ({few(beside)})"
        raise AuditError(what, where=str(file), hint=f"Save the model as a diffusers folder. {SUPPORTED}")
    for name, prefix in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
        converted = _converted(name, split.pop(prefix), networks[name], configs[name], str(file))
        fill(networks[name], converted, name, str(file), dtype)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
    hashes = dict.fromkeys(("unet", "vae", "text_encoder"), sha256_of([file]))
    hashes["tokenizer"] = hashlib.sha256(vocabulary).hexdigest()
    about = {"scheduler": configs["scheduler_record"], "files_not_read": []}
    parts = {**networks, "tokenizer": tokenizer, "scheduler_config": configs["scheduler"], "about": about}
    return parts, hashes, markers(header)


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


def single_file_configs(header: Mapping[str, Tensor], file: Path, config: Path | None) -> dict[str, Any]:
    """Return the configurations of a single file: those of its family, or of a diffusers folder.

    Args:
        header: Names and shapes of the file's tensors, from `read_header`.
        file: The file, for errors.
        config: A diffusers folder; None for the configurations of the family.

    Returns:
        The configuration of each part of the model, by the part's name.

    Raises:
        AuditError: The file belongs to a family that is not supported, or lacks a network.
    """
    family = _family(header)
    if f"{UNET}input_blocks.0.0.weight" not in header:
        hint = "Give a diffusers folder, or a single file that holds the whole model."
        raise AuditError(f"the model does not load: {_what_else(header, family)}", where=str(file), hint=hint)
    if family not in _FAMILIES:
        raise AuditError(f"this is {_named(family)}", where=str(file), hint=SUPPORTED, kind="unsupported_model")
    for part, prefixes in (("text encoder", (CLIP, OPEN_CLIP)), ("VAE", (VAE,))):
        if not any(key.startswith(prefixes) for key in header):
            hint = "Give a file that holds the whole model, or a diffusers folder."
            raise AuditError(f"there is no {part} in this file", where=str(file), hint=hint)
    if config is not None:
        return folder_configs(StableDiffusion, config)
    content = resources.files("audit.models").joinpath(f"configs/{family}.json").read_text(encoding="utf-8")
    configs: dict[str, Any] = json.loads(content)
    written = configs["scheduler"]
    described = record(written, written["_class_name"])
    return configs | {"scheduler": resolve(written, written["_class_name"]), "scheduler_record": described}


def markers(header: Mapping[str, Tensor]) -> dict[str, bool]:
    """Tell which of the empty tensors `v_pred` and `ztsnr`, which fine-tunes add as markers, a file has."""
    return {name: name in header for name in ("v_pred", "ztsnr")}


def _family(header: Mapping[str, Tensor]) -> str:
    try:
        family: str = ldm.infer_diffusers_model_type(dict(header))
    except Exception:  # infer_diffusers_model_type reads values and shapes of other families' tensors
        return "unknown"
    return family


def _named(family: str) -> str:
    known: Any = ldm.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(family, {})
    like = known.get("pretrained_model_name_or_path")
    return f"a model of the family {family}" + (f", as {like}" if like else "")


def _what_else(header: Mapping[str, Tensor], family: str) -> str:
    """Describe a file that has no UNet in the original layout."""
    if family != "v1":  # diffusers calls everything that it does not recognise v1
        return f"this is {_named(family)}. {SUPPORTED}"
    if any("lora_" in key or ".lora" in key for key in header):
        return "these are LoRA weights: set `lora` to this file, and `model` to the model that it belongs to"
    if "emb_params" in header or len(header) == 1:
        return "this is a textual inversion: add it to model.textual_inversion"
    if any(key.startswith("down_blocks.") for key in header):
        return "these are the weights of one component of a diffusers folder"
    return "there is no UNet in this file"


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.startswith(prefix) and not _BESIDE.match(key)}


def _converted(
    name: str, tensors: dict[str, Tensor], network: nn.Module, config: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    """Rename the tensors of one network as diffusers does. Raise AuditError if one cannot be renamed."""
    if name == "text_encoder":
        return _converted_text(tensors, network, where)
    convert: Any = ldm.convert_ldm_unet_checkpoint if name == "unet" else ldm.convert_ldm_vae_checkpoint
    try:
        found: dict[str, Tensor] = convert(dict(tensors), config=dict(config))
    except (KeyError, IndexError, ValueError) as error:
        what = f"{name}: a weight is missing or of another shape ({first_line(error)})"
        raise AuditError(what, where=where, hint="The file is incomplete, or of another architecture.") from error
    kept = {tensor.data_ptr() for tensor in found.values()}
    lost = [key for key, tensor in tensors.items() if tensor.data_ptr() not in kept]
    if lost:
        what = f"{name}: {len(lost)} weights belong to no layer ({few(lost)})"
        raise AuditError(what, where=where, hint=SUPPORTED)
    return found


def _converted_text(tensors: dict[str, Tensor], network: nn.Module, where: str) -> dict[str, Tensor]:
    clip = any(key.startswith(CLIP) for key in tensors)
    known = (CLIP,) if clip else tuple(f"{OPEN_CLIP}{part}" for part in _OPEN_CLIP_PARTS)
    lost = [key for key in tensors if not key.startswith(known)]
    if lost:
        what = f"text_encoder: {len(lost)} weights belong to no layer ({few(lost)})"
        raise AuditError(what, where=where, hint=SUPPORTED)
    if clip:
        return {key.removeprefix(CLIP): tensor for key, tensor in tensors.items()}
    # The projection and the last block in the published files are not part of SD 2.x's text encoder.
    tensors.pop(f"{OPEN_CLIP}text_projection", None)
    found: dict[str, Tensor] = ldm.convert_open_clip_checkpoint(network, tensors, prefix=OPEN_CLIP)
    return found
