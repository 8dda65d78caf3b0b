"""List the families of models: which class runs the pipelines of a diffusers class."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from audit.models.files import read_json
from audit.models.model import Model

# Class of a diffusers pipeline -> module and class in `audit.models`. Families load when they are needed.
FAMILIES = {
    "StableDiffusionPipeline": "sd.StableDiffusion",
    "StableDiffusionImg2ImgPipeline": "sd.StableDiffusion",
    "StableDiffusionXLPipeline": "sdxl.StableDiffusionXL",
    "StableDiffusion3Pipeline": "sd3.StableDiffusion3",
    "FluxPipeline": "flux.Flux",
    "PixArtAlphaPipeline": "pixart.PixArtAlpha",
    "PixArtSigmaPipeline": "pixart.PixArtSigma",
    "SanaPipeline": "sana.Sana",
}


def family_named(pipeline: str | None) -> type[Model]:
    """Return the family that runs a class of pipelines.

    Other text-to-image pipelines of diffusers are run by `Generic`, and all others by Stable Diffusion, whose checks
    name what is wrong.
    """
    home = FAMILIES.get(pipeline or "", "sd.StableDiffusion")
    if pipeline and pipeline not in FAMILIES:
        from audit.models.pipeline_parts import is_text_to_image

        home = "generic.Generic" if is_text_to_image(pipeline) else home
    module, _, name = home.partition(".")
    family: type[Model] = getattr(import_module(f"audit.models.{module}"), name)
    return family


def family_of(folder: Path) -> type[Model]:
    """Return the family of a diffusers folder, which `model_index.json` names."""
    index = folder / "model_index.json"
    return family_named(read_json(index).get("_class_name") if index.is_file() else None).of_folder(folder)
