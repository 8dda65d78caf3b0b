"""Make the networks of a checkpoint from their configurations, and fill them with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from audit.errors import AuditError, first_line
from audit.models.architecture import check_folder, check_unet
from audit.models.files import STEMS, read_json, sha256_of, variants, weights_files
from audit.models.schedulers import read_scheduler
from audit.models.unread_files import files_not_read
from audit.models.weights import fill, read_tensors, state_sha256


def empty_networks(configs: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Make `unet`, `vae` and `text_encoder` from their configurations, without allocating memory for weights.

    Args:
        configs: Configurations by component.
        where: The model, for errors.

    Raises:
        AuditError: A configuration is invalid, or describes a UNet with unsupported inputs.
    """
    makers: dict[str, Callable[[Any], nn.Module]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)),
    }
    found: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            with init_empty_weights(include_buffers=False):
                found[name] = make(dict(configs[name]))
        except Exception as error:  # the exceptions that networks raise for invalid configurations are not documented
            what = f"{name}/config.json is not a valid configuration: {first_line(error)}"
            raise AuditError(what, where=where, hint="Is the file damaged, or written by a newer diffusers?") from error
    check_unet(found["unet"].config, where)
    return found


def folder_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations of a diffusers folder, by component. Raise AuditError if it is not supported."""
    check_folder(folder)
    try:
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder").to_dict()
    except Exception as error:
        what = f"text_encoder/config.json does not load: {first_line(error)}"
        raise AuditError(what, where=str(folder), hint="Is the file damaged or missing?") from error
    scheduler, record = read_scheduler(folder)
    return {
        "unet": read_json(folder / "unet" / "config.json"),
        "vae": read_json(folder / "vae" / "config.json"),
        "text_encoder": text,
        "scheduler": scheduler,
        "scheduler_record": record,
    }


def folder_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer of a diffusers folder. Raise AuditError if its files are damaged or missing."""
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return tokenizer
    except Exception as error:  # the exceptions that the loader raises for damaged files are not documented
        what = f"the tokenizer does not load: {first_line(error)}"
        raise AuditError(what, where=str(folder / "tokenizer"), hint="Is a file damaged or missing?") from error


def load_folder(folder: Path, dtype: torch.dtype, variant: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a diffusers folder.

    Args:
        folder: The folder.
        dtype: Dtype to load the weights in.
        variant: Variant of the weights to load if there is one.

    Returns:
        The parts (`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler_config`, `about`) and the sha256 of the files
        of each.

    Raises:
        AuditError: A part is missing, damaged or not supported, or its weights do not fit it.
    """
    configs = folder_configs(folder)
    files = {name: weights_files(folder / name, variant) for name in STEMS}
    if variant is not None and not any(variant in variants(folder / name) for name in STEMS):
        hint = "Leave model.variant (variant=) out."
        raise AuditError(f"no weights of the variant {variant}", where=str(folder), hint=hint)
    networks = empty_networks(configs, str(folder))
    for name, network in networks.items():
        fill(network, read_tensors(files[name]), name, str(folder / name), dtype)
    read = [file for paths in files.values() for file in paths]
    about = {"scheduler": configs["scheduler_record"], "files_not_read": files_not_read(folder, read)}
    parts = {**networks, "tokenizer": folder_tokenizer(folder), "about": about}
    parts["scheduler_config"] = configs["scheduler"]
    hashes = {name: sha256_of(paths) for name, paths in files.items()}
    hashes["tokenizer"] = sha256_of(sorted(file for file in (folder / "tokenizer").iterdir() if file.is_file()))
    return parts, hashes


def loaded_sha256(parts: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weights of each network as loaded, in the dtype in which they run."""
    return {f"{name} (as loaded)": state_sha256(parts[name]) for name in STEMS}
