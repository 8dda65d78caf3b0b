"""Read from a folder which pipeline of diffusers it is, and of which parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from torch import nn
from transformers import PreTrainedTokenizerBase

from audit.errors import AuditError
from audit.models.files import read_json

DENOISERS = ("transformer", "unet")
# What a pipeline must have to be run by its own call (`audit.models.own_pipeline`).
METHODS = ("encode_prompt", "prepare_latents")
ARGUMENTS = ("prompt", "latents", "height", "width", "guidance_scale", "generator", "output_type")


@dataclass(frozen=True)
class Parts:
    """The pipeline of a folder.

    Attributes:
        pipeline: Its class.
        networks: Class of each network, by the name of its folder.
        tokenizers: Class of each tokenizer, likewise.
        settings: Entries of `model_index.json` that are not parts.
        denoiser: The network that is sampled.
    """

    pipeline: Any
    networks: Mapping[str, type[nn.Module]]
    tokenizers: Mapping[str, type]
    settings: Mapping[str, Any]
    denoiser: str


def is_text_to_image(name: str) -> bool:
    """Tell whether diffusers lists a class of pipelines as text-to-image (`AutoPipelineForText2Image`)."""
    return any(name == kind.__name__ for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())


def parts_of(folder: Path) -> Parts:
    """Read the parts of a text-to-image pipeline. Optional parts that take no part in the images are left out.

    Args:
        folder: A diffusers folder with `model_index.json`.

    Raises:
        AuditError: A part is not known, or one that is needed is missing.
    """
    listed, where = read_json(folder / "model_index.json"), str(folder)
    kind = getattr(diffusers, listed["_class_name"])
    networks, tokenizers, settings = {}, {}, {}
    for name, entry in listed.items():
        if name.startswith("_") or name == "scheduler" or entry == [None, None]:
            continue
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(each, str) for each in entry)):
            settings[name] = False if name == "requires_safety_checker" else entry
        elif name.startswith("tokenizer"):
            tokenizers[name] = _class_of(PreTrainedTokenizerBase, name, *entry, where=where)
        elif name in (*DENOISERS, "vae") or name.startswith("text_encoder"):
            networks[name] = _class_of(nn.Module, name, *entry, where=where)
        elif name not in kind._optional_components:
            raise unsupported(kind, f"has a part that is not known: {name}", where)
    for name in ({"vae"} - networks.keys()) | ({"tokenizer"} - tokenizers.keys()):
        raise unsupported(kind, f"has no {name}", where)
    denoisers = [name for name in DENOISERS if name in networks]
    if len(denoisers) != 1:
        raise unsupported(kind, f"has {len(denoisers)} networks that are sampled", where)
    for method in (each for each in METHODS if not hasattr(kind, each)):
        raise unsupported(kind, f"has no {method}", where)
    for argument in (each for each in ARGUMENTS if each not in signature(kind.__call__).parameters):
        raise unsupported(kind, f"takes no {argument}", where)
    return Parts(kind, networks, tokenizers, settings, denoisers[0])


def _class_of(kind: type, part: str, library: str, name: str, *, where: str) -> Any:
    """Return the class of a part, if diffusers or transformers has it: code of a folder is never run."""
    if library in ("diffusers", "transformers") or hasattr(diffusers.pipelines, library):
        found = getattr(getattr(diffusers.pipelines, library, None) or import_module(library), name, None)
        if isinstance(found, type) and issubclass(found, kind):
            return found
    what = f"{part} is {library}.{name}, which is not a part that the installed diffusers and transformers have"
    raise AuditError(what, where=where, hint="Code of a folder or a hub id is never run.", kind="unsupported_model")


def unsupported(pipeline: Any, what: str, where: str) -> AuditError:
    """Make the error for a pipeline that cannot be run without a family.

    Args:
        pipeline: The class of the pipeline.
        what: What is in the way.
        where: The model.
    """
    hint = "Add a family for it (docs/how-to/add-a-model-family.md)."
    return AuditError(f"{pipeline.__name__} {what}", where=where, hint=hint, kind="unsupported_model")
