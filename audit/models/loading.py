"""Load a text-to-image model of a known family, from safetensors only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from audit.errors import AuditError, UsageError
from audit.models.compilation import compile_blocks
from audit.models.files import sha256_of
from audit.models.hub import from_hub
from audit.models.lora import add_lora, lora_files
from audit.models.model import Model
from audit.models.networks import load_folder, loaded_sha256
from audit.models.placement import place_networks
from audit.models.prediction_type import check_prediction, decide, published_size
from audit.models.registry import family_of
from audit.models.single_file import load_single_file, read_header, single_file_layout
from audit.models.textual_inversion import TextualInversion, add_textual_inversion


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
    lora: str | Path | None = None,
    *,
    resolution: int | tuple[int, int] | None = None,
    prediction_type: str | None = None,
    textual_inversion: Sequence[TextualInversion | str | Path] = (),
    variant: str | None = None,
    compile: bool = False,
) -> Model:
    """Load a diffusers folder, a hub id or a single .safetensors file in the original layout.

    Args:
        path: The folder, file or hub id. A hub id needs no network if the model is in the cache.
        device: Device to run on.
        dtype: Dtype to load the weights in and to run in, whatever the dtype of the files.
        config: For a single file whose architecture is not that of SD 1.x, 2.x or XL: a diffusers folder with the
            configurations and the tokenizers.
        lora: LoRA weights to add to the model's, at full strength: a .safetensors file, or a folder written by PEFT.
        resolution: Resolution of the images in pixels, one number or (height, width); by default that of the UNet's
            `sample_size`.
        prediction_type: "epsilon" or "v_prediction"; by default what the scheduler's configuration says. A single file
            has none; for it, the file's marker is used, or the type is measured.
        textual_inversion: Files of learned embeddings.
        variant: Variant of the weights to load if there is one, such as "fp16".
        compile: Compile blocks of the denoiser with `torch.compile`. On a GPU, forwards become faster after minutes
            of compilation (docs/explanation/performance.md).

    Returns:
        The model, on `device` and in `dtype`.

    Raises:
        AuditError: There is no such model, it is a pickle, its architecture is not supported, or its weights are
            incomplete, belong to another model, or contain NaN or infinity.
        UsageError: An argument is invalid.
    """
    place, where = Path(path), str(path)
    if torch.device(device).type == "mps":
        raise UsageError("scores are sums in float64, which mps does not have", hint="Use the device cpu.")
    if prediction_type is not None:
        check_prediction(prediction_type)
    facts: dict[str, str] = {}
    additions = {"lora": lora, "textual_inversion": textual_inversion}
    with no_progress_bars():
        if place.is_file():
            header = read_header(place)
            layout = single_file_layout(header, place)
            family = layout.family
            check_additions(family, additions, where)
            folder = None if config is None else Path(config)
            parts, hashes, marked = load_single_file(header, layout, place, dtype, folder)
            model = assembled(family, parts, hashes, device, dtype, resolution, where=where)
            parts["scheduler_config"], how = decide(model, marked, folder is not None, prediction_type, where)
            facts["prediction_type"] = f"{parts['scheduler_config']['prediction_type']} ({how})"
            if parts["scheduler_config"].get("rescale_betas_zero_snr"):
                facts["zero terminal SNR"] = "yes"
            if folder is None:
                size = published_size(parts["unet"].config, parts["scheduler_config"]["prediction_type"])
                parts["unet"].register_to_config(sample_size=size)
        else:
            if config is not None:
                raise UsageError("config is for a single file", where=where, hint="Leave config (model.config) out.")
            folder = place if place.is_dir() else from_hub(path, variant=variant)
            family = family_of(folder)
            check_additions(family, additions, where)
            parts, hashes = load_folder(family, folder, dtype, variant)
            if prediction_type is not None:
                if "prediction_type" not in parts["scheduler_config"]:
                    hint = "Leave model.prediction_type (prediction_type=) out."
                    raise UsageError("models of this family predict a flow's velocity", where=where, hint=hint)
                parts["scheduler_config"] = dict(parts["scheduler_config"]) | {"prediction_type": prediction_type}
                facts["prediction_type"] = f"{prediction_type} (as given)"
        listed = [each if isinstance(each, TextualInversion) else TextualInversion(each) for each in textual_inversion]
        if listed:
            add_textual_inversion(listed, parts)
            family.check(parts, where)
            hashes["textual_inversion"] = sha256_of([Path(each.path) for each in listed])
    loaded = loaded_sha256(family, parts)
    if lora is not None:
        add_lora(lora, {name: parts[name] for name in family.NETWORKS if name != "vae"})
        hashes["lora"] = sha256_of(lora_files(lora))
    model = assembled(family, parts, hashes, device, dtype, resolution, where=where, loaded=loaded, facts=facts)
    if compile:
        compile_blocks(getattr(model, model.DENOISER), where)
    return model


def assembled(
    family: type[Model],
    parts: Mapping[str, Any],
    hashes: Mapping[str, str],
    device: str | torch.device,
    dtype: torch.dtype,
    resolution: int | tuple[int, int] | None = None,
    *,
    where: str = "",
    loaded: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> Model:
    """Assemble a Model from loaded parts.

    Args:
        family: The family.
        parts: Its networks and tokenizers, `scheduler_config` and, optionally, `settings` and `about`.
        hashes: Hashes of the files of each part.
        device: Device to run on.
        dtype: Dtype to run in.
        resolution: As for `load_model`.
        where: The model, for errors.
        loaded: Hashes of the weights as loaded.
        facts: Other decisions made on loading, in words.

    Returns:
        The model, on `device` and in `dtype`.

    Raises:
        AuditError: The size of the images is unknown.
        UsageError: The resolution does not fit the autoencoder.
    """
    networks = {name: parts[name] for name in family.NETWORKS}
    takes_turns = place_networks(networks, family.DENOISER, torch.device(device))
    model = family(
        **networks,
        **{name: parts[name] for name in family.TOKENIZERS},
        scheduler_config=parts["scheduler_config"],
        device=torch.device(device),
        dtype=dtype,
        latent_shape=family.own_latent_shape(parts, resolution, where),
        weights_sha256=hashes,
        loaded_sha256=loaded or {},
        about=parts.get("about", {}),
        settings=parts.get("settings", family.SETTINGS),
        takes_turns=takes_turns,
    )
    size = "{} x {}".format(*model.resolution)
    return replace(model, facts={"resolution": size, **(facts or {})})


def check_additions(family: type[Model], given: Mapping[str, Any], where: str) -> None:
    """Check that a family supports what is to be added to its weights.

    Args:
        family: The family.
        given: What is to be added, by name: `lora` and `textual_inversion`; none if empty.
        where: The model, for the error.

    Raises:
        AuditError: The family does not support it.
    """
    for name in (name for name, value in given.items() if value and name not in family.ADDITIONS):
        what = f"{family.__name__} models are not supported with {name}"
        hint = f"Leave {name} out, or merge it into the weights."
        raise AuditError(what, where=where, hint=hint, kind="unsupported_model")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of libraries inside the `with` block, because they would garble the caller's own."""
    libraries = [library for library in (transformers_logging, diffusers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
