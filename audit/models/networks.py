"""Make the networks of a checkpoint from their configurations, and fill them with weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from audit.errors import AuditError, first_line
from audit.models.files import read_json, sha256_of, variants, weights_files
from audit.models.model import Model
from audit.models.unread_files import files_not_read
from audit.models.weights import fill, read_tensors, state_sha256


def empty_networks(family: type[Model], configs: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Make the networks of a family from their configurations, without allocating memory for weights.

    Args:
        family: The family.
        configs: Configurations by component.
        where: The model, for errors.

    Raises:
        AuditError: A configuration is invalid.
    """
    found: dict[str, Any] = {}
    for name, kind in family.NETWORKS.items():
        try:
            with init_empty_weights(include_buffers=False), no_init_weights():
                found[name] = _network(kind, configs[name])
        except Exception as error:  # the exceptions that networks raise for invalid configurations are not documented
            what = f"{name}/config.json is not a valid configuration: {first_line(error)}"
            raise AuditError(what, where=where, hint="Is the file damaged, or written by a newer diffusers?") from error
    return found


def _network(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    if issubclass(kind, PreTrainedModel):
        made: nn.Module = kind(kind.config_class.from_dict(dict(config)))
    else:
        made = kind.from_config(dict(config))
    return made


def folder_configs(family: type[Model], folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations of a diffusers folder, by component.

    Args:
        family: The family of the folder's pipeline.
        folder: The folder.

    Raises:
        AuditError: It is not complete or not supported.
    """
    family.check_folder(folder)
    configs: dict[str, dict[str, Any]] = {}
    for name, kind in family.NETWORKS.items():
        if not issubclass(kind, PreTrainedModel):
            configs[name] = read_json(folder / name / "config.json")
            continue
        try:
            configs[name] = kind.config_class.from_pretrained(folder / name).to_dict()  # type: ignore[attr-defined]
        except Exception as error:
            what = f"{name}/config.json does not load: {first_line(error)}"
            raise AuditError(what, where=str(folder), hint="Is the file damaged or missing?") from error
    configs["scheduler"], configs["scheduler_record"] = family.read_scheduler(folder)
    index = folder / "model_index.json"
    listed = read_json(index) if index.is_file() else {}
    configs["settings"] = {name: listed.get(name, default) for name, default in family.SETTINGS.items()}
    return configs


def folder_tokenizers(family: type[Model], folder: Path) -> dict[str, Any]:
    """Load the tokenizers of a diffusers folder, by component.

    Args:
        family: The family of the folder's pipeline.
        folder: The folder.

    Raises:
        AuditError: Their files are damaged or missing.
    """
    found: dict[str, Any] = {}
    for name, kind in family.TOKENIZERS.items():
        try:
            found[name] = kind.from_pretrained(folder / name)  # type: ignore[attr-defined]
        except Exception as error:  # the exceptions that the loader raises for damaged files are not documented
            what = f"the tokenizer does not load: {first_line(error)}"
            raise AuditError(what, where=str(folder / name), hint="Is a file damaged or missing?") from error
    return found


def load_folder(
    family: type[Model], folder: Path, dtype: torch.dtype, variant: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a diffusers folder.

    Args:
        family: The family of the folder's pipeline.
        folder: The folder.
        dtype: Dtype to load the weights in.
        variant: Variant of the weights to load if there is one.

    Returns:
        The parts (networks and tokenizers by name, `scheduler_config`, `settings`, `about`) and the sha256 of the files
        of each network and tokenizer.

    Raises:
        AuditError: A part is missing, damaged or not supported, or its weights do not fit it.
    """
    configs = folder_configs(family, folder)
    files = {name: weights_files(folder / name, variant) for name in family.NETWORKS}
    if variant is not None and not any(variant in variants(folder / name) for name in family.NETWORKS):
        hint = "Leave model.variant (variant=) out."
        raise AuditError(f"no weights of the variant {variant}", where=str(folder), hint=hint)
    networks = empty_networks(family, configs, str(folder))
    parts = networks | folder_tokenizers(family, folder)
    family.check(parts, str(folder))
    for name, network in networks.items():
        fill(network, read_tensors(files[name]), name, str(folder / name), dtype)
    read = [file for paths in files.values() for file in paths]
    parts["about"] = {"scheduler": configs["scheduler_record"], "files_not_read": files_not_read(folder, read)}
    parts |= {"scheduler_config": configs["scheduler"], "settings": configs["settings"]}
    hashes = {name: sha256_of(paths) for name, paths in files.items()}
    for name in family.TOKENIZERS:
        hashes[name] = sha256_of(sorted(file for file in (folder / name).iterdir() if file.is_file()))
    return parts, hashes


def loaded_sha256(family: type[Model], parts: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weights of each network as loaded, in the dtype in which they run."""
    return {f"{name} (as loaded)": state_sha256(parts[name]) for name in family.NETWORKS}
