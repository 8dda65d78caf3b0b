"""Loading a text-to-image model: SD1- and SD2-shaped UNet pipelines of diffusers, from safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from audit.attention import cross_attention_layers
from audit.errors import AuditError, first_line
from audit.hub import is_hub_id
from audit.lora import add_lora

# Shapes: B captions, K text positions, D width of the text encoder, C, H and W of the latent.

SUPPORTED = "Supported: Stable Diffusion 1.x and 2.x text-to-image pipelines (UNet2DConditionModel + CLIPTextModel)."
CONVERT = "A pickle can run code. Convert it: load it where you trust it, then pipeline.save_pretrained(folder)."
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model, in eval mode, and what a result depends on.

    layers: the cross-attention layers in order of execution. latent_shape: (C, H, W). weights_sha256: of `unet`,
    `text_encoder`, `tokenizer`, `vae`, and of `lora` if there is one; for a component with one weights file, what
    `sha256sum` says of that file. batch_sizes: what has turned out to fit in memory, by task (`audit.rows`).
    """

    unet: UNet2DConditionModel = field(repr=False)
    text_encoder: CLIPTextModel = field(repr=False)
    tokenizer: CLIPTokenizer = field(repr=False)
    vae: AutoencoderKL = field(repr=False)
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]
    layers: tuple[Attention, ...] = field(repr=False)
    weights_sha256: Mapping[str, str]
    batch_sizes: dict[str, int] = field(default_factory=dict, repr=False)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids, padded and truncated to the model's length, and their mask: [B, K] each, on the CPU."""
        longest = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids, tokens.attention_mask

    @torch.inference_mode()
    def embed(self, ids_BK: Tensor, mask_BK: Tensor) -> Tensor:
        """Hidden states of tokenized captions: [B, K, D], in the model's dtype."""
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = mask_BK.to(self.device) if masked else None
        hidden_BKD: Tensor = self.text_encoder(ids_BK.to(self.device), attention_mask=mask)[0]
        return hidden_BKD.to(self.dtype)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Hidden states [B, K, D] of captions, and how many tokens each has (BOS and EOS included, truncated to K)."""
        ids_BK, mask_BK = self.tokenize(captions)
        return self.embed(ids_BK, mask_BK), mask_BK.sum(1).tolist()

    def predict(self, latents_BCHW: Tensor, timestep: int, hidden_BKD: Tensor) -> Tensor:
        """Run the UNet in the model's dtype on float32 latents.

        Args:
            latents_BCHW: The noisy latents, [B, C, H, W].
            timestep: The timestep of training, the same for all rows.
            hidden_BKD: Hidden states of the captions, [B, K, D].

        Returns:
            The UNet's output, [B, C, H, W], in float32: predicted noise or velocity, as the model was trained.
        """
        sample = self.unet(latents_BCHW.to(self.dtype), timestep, encoder_hidden_states=hidden_BKD).sample
        predicted_BCHW: Tensor = sample.float()
        return predicted_BCHW

    def pipeline(self) -> StableDiffusionPipeline:
        """The model as diffusers serves it, by DDIM: for the same noise its latents are those of `audit.generate`."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=None,  # type: ignore[arg-type]
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        # Given to the constructor, a configuration that it holds for outdated would be changed.
        pipeline.scheduler = DDIMScheduler.from_config(self.scheduler_config)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.audited = self  # what a calibration is held against (audit.mitigated, only=)
        return pipeline


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
    lora: str | Path | None = None,
) -> Model:
    """Load a diffusers folder, a hub id or a single .safetensors file.

    config: for a single file, a diffusers folder that holds the configurations and the tokenizer (needs no network).
    lora: LoRA weights (.safetensors) to add to the model's, at their full strength; their sha256 is that of `lora`.
    Raises AuditError if there is no such model, if it is a pickle, or if its architecture is not supported.
    """
    place = Path(path)
    if place.is_file():
        with no_progress_bars():
            parts, hashes = _load_single_file(place, dtype, config)
    else:
        folder = place if place.is_dir() else from_hub(path)
        with no_progress_bars():
            parts, hashes = _load_folder(folder, dtype)
    unet, text_encoder = parts["unet"], parts["text_encoder"]
    check_unet(unet.config, str(path))
    if lora is not None:
        add_lora(lora, {"unet": unet, "text_encoder": text_encoder})
        hashes["lora"] = _sha256([Path(lora)])
    return assembled(parts, hashes, device, dtype)


def assembled(
    parts: Mapping[str, Any], hashes: Mapping[str, str], device: str | torch.device, dtype: torch.dtype
) -> Model:
    """The Model of loaded parts: `unet`, `text_encoder`, `vae`, `tokenizer` and `scheduler_config`."""
    unet, text_encoder, vae = parts["unet"], parts["text_encoder"], parts["vae"]
    for module in (unet, text_encoder, vae):
        module.to(device).eval().requires_grad_(False)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    scheduler = DDIMScheduler.from_config(parts["scheduler_config"])
    return Model(
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=parts["tokenizer"],
        vae=vae,
        scheduler_config={key: value for key, value in scheduler.config.items() if not key.startswith("_")},
        device=torch.device(device),
        dtype=dtype,
        latent_shape=(unet.config.in_channels, height, width),
        layers=tuple(cross_attention_layers(unet)),
        weights_sha256=hashes,
    )


def _load_folder(folder: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, str]]:
    check_folder(folder)
    for name in _WEIGHTS:
        _weights_files(folder / name)
    try:
        parts = {
            "unet": UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype, use_safetensors=True),
            "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, use_safetensors=True),
            "vae": AutoencoderKL.from_pretrained(folder / "vae", dtype=dtype, use_safetensors=True),
            "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "scheduler_config": DDIMScheduler.load_config(folder / "scheduler"),
        }
    except Exception as error:  # what the loaders raise for a damaged file is not documented
        raise AuditError(
            f"the model does not load: {first_line(error)}", where=str(folder), do="Is a file damaged or missing?"
        ) from error
    hashes = {name: _sha256(_weights_files(folder / name)) for name in _WEIGHTS}
    hashes["tokenizer"] = _sha256(sorted(file for file in (folder / "tokenizer").iterdir() if file.is_file()))
    return parts, hashes


def _load_single_file(
    file: Path, dtype: torch.dtype, config: str | Path | None
) -> tuple[dict[str, Any], dict[str, str]]:
    if file.suffix != ".safetensors":
        raise AuditError(f"a single-file model must be .safetensors, not {file.suffix!r}", where=str(file), do=CONVERT)
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(file),
            dtype=dtype,
            config=None if config is None else str(config),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
        )
    except Exception as error:
        offline = "" if config else "Without network, give config=, a diffusers folder with its configuration. "
        raise AuditError(
            f"the model does not load: {first_line(error)}", where=str(file), do=offline + SUPPORTED
        ) from error
    digest = _sha256([file])
    parts = {**pipeline.components, "scheduler_config": dict(pipeline.scheduler.config)}
    vocabulary = json.dumps(pipeline.tokenizer.get_vocab(), sort_keys=True).encode()
    return parts, dict.fromkeys(_WEIGHTS, digest) | {"tokenizer": hashlib.sha256(vocabulary).hexdigest()}


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading takes seconds, and the bars of the libraries would tear a progress display of the caller's."""
    libraries = [library for library in (transformers_logging, diffusers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def from_hub(path: str | Path, weights: bool = True) -> Path:
    """The folder of a model of the hub in its cache; without `weights`, of its configuration and tokenizer alone."""
    if not is_hub_id(str(path)):
        do = "Give a diffusers folder, a .safetensors file or a hub id."
        raise AuditError("no such model", where=str(path), do=do)
    try:
        if not weights:
            return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.txt"]))
        return Path(
            StableDiffusionPipeline.download(
                str(path), use_safetensors=True, safety_checker=None, feature_extractor=None, image_encoder=None
            )
        )
    except Exception as error:
        raise AuditError(
            f"no such folder here, and not to be had from the hub: {first_line(error)}",
            where=str(path),
            do="Give a diffusers folder, a .safetensors file or the id of a model with safetensors weights.",
        ) from error


def check_folder(folder: Path) -> None:
    """Raises AuditError unless a folder is laid out as a supported pipeline of diffusers; says nothing of weights."""
    index = folder / "model_index.json"
    kind = _read_json(index).get("_class_name") if index.is_file() else None
    if not (folder / "unet").is_dir():
        what = f"no unet/ in this folder{f' ({kind})' if kind else ''}"
        raise AuditError(what, where=str(folder), do=SUPPORTED, kind="unsupported_model")
    for name in ("text_encoder", "vae", "tokenizer", "scheduler"):
        if not (folder / name).is_dir():
            raise AuditError(f"no {name}/ in this folder", where=str(folder), do="Give a complete diffusers folder.")
    if (folder / "text_encoder_2").is_dir():
        raise AuditError(f"two text encoders ({kind})", where=str(folder), do=SUPPORTED, kind="unsupported_model")
    unet = _read_json(folder / "unet" / "config.json").get("_class_name")
    encoder = _read_json(folder / "text_encoder" / "config.json")
    text = (encoder.get("architectures") or [encoder.get("model_type")])[0]
    if unet != "UNet2DConditionModel" or text not in ("CLIPTextModel", "clip_text_model"):
        raise AuditError(f"this is {unet} + {text}", where=str(folder), do=SUPPORTED, kind="unsupported_model")


def check_unet(config: Mapping[str, Any], where: str) -> None:
    """Raises AuditError if a UNet is conditioned by more than text and time."""
    conditions = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds")
    extra = [name for name in conditions if config[name] is not None]
    if config["in_channels"] != config["out_channels"]:
        extra.append(f"in_channels {config['in_channels']}, out_channels {config['out_channels']}")
    if extra:
        raise AuditError(f"the UNet has {', '.join(extra)}", where=where, do=SUPPORTED, kind="unsupported_model")


def _weights_files(folder: Path) -> list[Path]:
    stem = _WEIGHTS[folder.name]
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".ckpt", ".pt", ".pth"})
    if pickles:
        raise AuditError(f"{pickles[0]} is a pickle; refused", where=str(folder), do=CONVERT, kind="pickle")
    raise AuditError(f"no {single.name}", where=str(folder), do="Give a complete diffusers folder.")


def _sha256(files: Sequence[Path]) -> str:
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise AuditError(f"not readable as JSON: {first_line(error)}", where=str(file)) from error
