"""A loaded text-to-image model: SD1- and SD2-shaped UNet pipelines of diffusers, from safetensors only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from audit.attention.probe import cross_attention_layers
from audit.errors import UsageError
from audit.models.architecture import check_text, check_vae, latent_size
from audit.models.files import sha256_of
from audit.models.hub import from_hub
from audit.models.lora import add_lora, lora_files
from audit.models.networks import load_folder, loaded_sha256
from audit.models.precision import name_of
from audit.models.prediction_type import check_prediction, decide, published_size
from audit.models.single_file import load_single_file
from audit.models.textual_inversion import TextualInversion, add_textual_inversion, expanded, tokens_of_several_vectors

# Shapes: B captions, K text positions, D width of the text encoder, C, H and W of the latent.


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model, in eval mode, and what a result depends on.

    layers: the cross-attention layers in order of execution. latent_shape: (C, H, W). weights_sha256: of `unet`,
    `text_encoder`, `tokenizer`, `vae`, and of `lora` and `textual_inversion` if there are any; for a component with
    one weights file, what `sha256sum` says of that file. scheduler_config: every parameter of DDIM sampling
    (`audit.models.schedulers`). loaded_sha256: of the weights of each network as they were loaded, before LoRA, in the
    dtype in which they run. facts: what else was decided on loading, such as the resolution, in words. about: what else
    the manifest records: `scheduler` (its class, and the keys of its file that have no effect) and `files_not_read` of
    a folder. batch_sizes: what has turned out to fit in memory, by task (`audit.scoring.batching`).
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
    loaded_sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    batch_sizes: dict[str, int] = field(default_factory=dict, repr=False)
    _several: tuple[str, ...] = field(default=(), repr=False)  # tokens that stand for several vectors

    @property
    def fingerprint(self) -> dict[str, str]:
        """What two workers of a run must agree on: sha256 of files and of loaded weights, the dtype and the facts."""
        return {**self.weights_sha256, **self.loaded_sha256, "dtype": name_of(self.dtype), **self.facts}

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of its images, in pixels."""
        _, height, width = self.latent_shape
        scale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return scale * height, scale * width

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids, padded and truncated to the model's length, and their mask: [B, K] each, on the CPU.

        Tokens of a textual inversion that stand for several vectors are expanded first, as diffusers does.
        """
        texts = expanded(captions, self.tokenizer) if self._several else list(captions)
        longest = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
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
    *,
    resolution: int | tuple[int, int] | None = None,
    prediction_type: str | None = None,
    textual_inversion: Sequence[TextualInversion | str | Path] = (),
    variant: str | None = None,
) -> Model:
    """Load a diffusers folder, a hub id or a single .safetensors file in the original layout.

    Args:
        path: The folder, file or hub id. A hub id needs no network where its cache holds the model.
        device: Where it runs.
        dtype: The dtype in which it is loaded and runs, whatever that of the files.
        config: For a single file whose architecture is not that of SD 1.x or 2.x: a diffusers folder that holds the
            configurations and the tokenizer.
        lora: LoRA weights to add to the model's, at their full strength: a .safetensors file, or a folder of PEFT.
        resolution: Pixels of the images, one number or (height, width); by default those of the UNet's `sample_size`.
        prediction_type: "epsilon" or "v_prediction"; by default as the scheduler's configuration says. For a single
            file, which has none, as the file's marker says or as measured.
        textual_inversion: Files of learned embeddings.
        variant: The variant of the weights to load where there is one, such as "fp16".

    Raises:
        AuditError: If there is no such model, if it is a pickle, if its architecture is not supported, or if its
            weights are incomplete, foreign, NaN or infinite.
        UsageError: If an argument does not fit.
    """
    place, where = Path(path), str(path)
    if prediction_type is not None:
        check_prediction(prediction_type)
    facts: dict[str, str] = {}
    with no_progress_bars():
        if place.is_file():
            folder = None if config is None else Path(config)
            parts, hashes, marked = load_single_file(place, dtype, folder)
            _place(parts, device)
            parts["scheduler_config"], how = decide(parts, marked, folder is not None, prediction_type, where)
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
            parts, hashes = load_folder(folder, dtype, variant)
            if prediction_type is not None:
                parts["scheduler_config"] = dict(parts["scheduler_config"]) | {"prediction_type": prediction_type}
                facts["prediction_type"] = f"{prediction_type} (as given)"
        check_text(parts["tokenizer"], parts["text_encoder"], parts["unet"].config, where)
        listed = [each if isinstance(each, TextualInversion) else TextualInversion(each) for each in textual_inversion]
        if listed:
            add_textual_inversion(listed, parts)
            hashes["textual_inversion"] = sha256_of([Path(each.path) for each in listed])
    loaded = loaded_sha256(parts)
    if lora is not None:
        add_lora(lora, {"unet": parts["unet"], "text_encoder": parts["text_encoder"]})
        hashes["lora"] = sha256_of(lora_files(lora))
    return assembled(parts, hashes, device, dtype, resolution, where=where, loaded=loaded, facts=facts)


def assembled(
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
    """The Model of loaded parts: `unet`, `text_encoder`, `vae`, `tokenizer`, `scheduler_config` and `about`."""
    unet, text_encoder, vae = parts["unet"], parts["text_encoder"], parts["vae"]
    _place(parts, device)
    check_vae(vae.config, unet.config.in_channels, where)
    height, width = latent_size(unet.config, vae.config, resolution, where)
    # A pipeline of the model makes images of the same size; the constructor of diffusers changes nothing further.
    unet.register_to_config(
        sample_size=height if height == width else [height, width], _diffusers_version=diffusers_version
    )
    model = Model(
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=parts["tokenizer"],
        vae=vae,
        scheduler_config=parts["scheduler_config"],
        device=torch.device(device),
        dtype=dtype,
        latent_shape=(unet.config.in_channels, height, width),
        layers=tuple(cross_attention_layers(unet)),
        weights_sha256=hashes,
        loaded_sha256=loaded or {},
        _several=tuple(tokens_of_several_vectors(parts["tokenizer"])),
        about=parts.get("about", {}),
    )
    size = "{} x {}".format(*model.resolution)
    return replace(model, facts={"resolution": size, **(facts or {})})


def _place(parts: Mapping[str, Any], device: str | torch.device) -> None:
    for name in ("unet", "text_encoder", "vae"):
        parts[name].to(device).eval().requires_grad_(False)


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
