"""Build the models for speed measurements. Full-size models have random weights, so nothing is downloaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import audit
from audit.costs.meta_networks import META, outline_model
from audit.models.loading import assembled
from audit.models.schedulers import resolve
from audit.models.sd import StableDiffusion

ROOT = Path(__file__).parents[1]
FOLDERS = {"tiny-sd1": ROOT / "tests/data/tiny-sd1", "demo": ROOT / "pipelines/demo/bundle/model"}
FAMILIES = {"sd15": "v1", "sd21": "v2"}
NAMES = (*FOLDERS, *FAMILIES)


def make(name: str, device: str | torch.device, dtype: torch.dtype = torch.float32) -> audit.Model:
    """Build a model.

    Args:
        name: "tiny-sd1" or "demo", which are in this repository, or "sd15" or "sd21": the published architecture with
            random weights and the demo's tokenizer.
        device: Device to run on.
        dtype: Dtype to run in.
    """
    if name in FOLDERS:
        return audit.load_model(FOLDERS[name], device, dtype)
    torch.manual_seed(0)
    configs = json.loads(resources.files("audit.models").joinpath(f"configs/{FAMILIES[name]}.json").read_text("utf-8"))
    with torch.device(device):
        networks = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
        }
    for network in networks.values():
        network.to(dtype)
    tokenizer = audit.load_model(FOLDERS["demo"]).tokenizer
    tokenizer.model_max_length = configs["text_encoder"]["max_position_embeddings"]
    parts = networks | {
        "tokenizer": tokenizer,
        "scheduler_config": resolve(configs["scheduler"], configs["scheduler"]["_class_name"]),
    }
    return assembled(StableDiffusion, parts, dict.fromkeys((*networks, "tokenizer"), "random"), device, dtype)


def outline(name: str) -> audit.Model:
    """Build a model without weights, to count its FLOPs."""
    return outline_model(FOLDERS[name]) if name in FOLDERS else make(name, META)
