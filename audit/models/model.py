"""Load a text-to-image model: UNet pipelines of diffusers shaped like SD1 or SD2, from safetensors only."""

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
from audit.models.architecture import check_text, check_vae, latent_size, pixels_per_latent, screening_size
from audit.models.files import sha256_of
from audit.models.hub import from_hub
from audit.models.lora import add_lora, lora_files
from audit.models.networks import load_folder, loaded_sha256
from audit.models.precision import name_of
from audit.models.prediction_type import check_prediction, decide, published_size
from audit.models.shared_prefix import shared_prefix
from audit.models.single_file import load_single_file
from audit.models.textual_inversion import TextualInversion, add_textual_inversion, expanded, tokens_of_several_vectors

# Shapes: B captions, K text positions, D width of the text encoder; C, H and W of the latent.


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model in eval mode, with everything that a result depends on.

    Attributes:
        unet: The UNet.
        text_encoder: The text encoder.
        tokenizer: The tokenizer.
        vae: The autoencoder.
        scheduler_config: Every parameter of DDIM sampling (`audit.models.schedulers`).
        device: Device that the model runs on.
        dtype: Dtype that it runs in.
        latent_shape: (C, H, W).
        layers: Cross-attention layers in order of execution.
        weights_sha256: Hashes of the files of `unet`, `text_encoder`, `tokenizer` and `vae`, and of `lora` and
            `textual_inversion` if there are any. For a component with one weights file, the output of `sha256sum`.
        loaded_sha256: Hashes of the weights of each network as loaded, before LoRA, in the dtype in which they run.
        facts: Other decisions made on loading, such as the resolution, in words.
        about: Further entries for the manifest: `scheduler` (its class, and the keys of its file that have no effect)
            and, for a folder, `files_not_read`.
        batch_sizes: Batch sizes that were found, by task and size of the latents (`audit.scoring.batching`).
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
        """Everything that the workers of a run must agree on: hashes of files and loaded weights, dtype and facts."""
        return {**self.weights_sha256, **self.loaded_sha256, "dtype": name_of(self.dtype), **self.facts}

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the generated images, in pixels."""
        _, height, width = self.latent_shape
        scale = pixels_per_latent(self.vae.config)
        return scale * height, scale * width

    def at_resolution(self, resolution: int | tuple[int, int] | None) -> Model:
        """Return a model that shares the networks of this one and runs on latents of another size, for screening.

        Args:
            resolution: Resolution in pixels, one number or (height, width); None for this model's own.

        Raises:
            UsageError: The UNet cannot take latents of this size.
        """
        if resolution is None:
            return self
        height, width = screening_size(self.unet.config, self.vae.config, resolution)
        return replace(self, latent_shape=(self.latent_shape[0], height, width))

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize captions, padded and truncated to the model's length: ids and mask, [B, K] each, on the CPU.

        Textual-inversion tokens that stand for several vectors are expanded first, as in diffusers.
        """
        texts = expanded(captions, self.tokenizer) if self._several else list(captions)
        longest = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        return tokens.input_ids, tokens.attention_mask

    @torch.inference_mode()
    def embed(self, ids_BK: Tensor, mask_BK: Tensor) -> Tensor:
        """Compute hidden states of tokenized captions: [B, K, D], in the model's dtype.

        Args:
            ids_BK: Token ids.
            mask_BK: Mask of the tokens, used if the text encoder's configuration says so.
        """
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = mask_BK.to(self.device) if masked else None
        hidden_BKD: Tensor = self.text_encoder(ids_BK.to(self.device), attention_mask=mask)[0]
        return hidden_BKD.to(self.dtype)

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Encode captions: hidden states [B, K, D], and the number of tokens of each, with BOS and EOS, at most K."""
        ids_BK, mask_BK = self.tokenize(captions)
        return self.embed(ids_BK, mask_BK), mask_BK.sum(1).tolist()

    def predict(self, latents_BCHW: Tensor, timestep: int, hidden_BKD: Tensor, period: int | None = None) -> Tensor:
        """Run the UNet in the model's dtype on float32 latents.

        Args:
            latents_BCHW: Noisy latents.
            timestep: Training timestep, the same for all rows.
            hidden_BKD: Hidden states of the captions.
            period: If given, row i has the latents of row i modulo this number, and what comes before the first
                cross-attention is computed once for all of them.

        Returns:
            The UNet's output [B, C, H, W], in float32: predicted noise or velocity, depending on how it was trained.
        """
        rows = len(latents_BCHW)
        with shared_prefix(self.unet, rows if period is None else period, rows):
            sample = self.unet(latents_BCHW.to(self.dtype), timestep, encoder_hidden_states=hidden_BKD).sample
        predicted_BCHW: Tensor = sample.float()
        return predicted_BCHW

    def pipeline(self) -> StableDiffusionPipeline:
        """Make a diffusers pipeline with DDIM; for the same noise, its latents equal those of `audit.generate`."""
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
        # Set afterwards, because the constructor modifies a configuration that it considers outdated.
        pipeline.scheduler = DDIMScheduler.from_config(self.scheduler_config)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.audited = self  # to check a calibration against (audit.mitigated, only=)
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
        path: The folder, file or hub id. A hub id needs no network if the model is in the cache.
        device: Device to run on.
        dtype: Dtype to load the weights in and to run in, whatever the dtype of the files.
        config: For a single file whose architecture is not that of SD 1.x or 2.x: a diffusers folder with the
            configurations and the tokenizer.
        lora: LoRA weights to add to the model's, at full strength: a .safetensors file, or a folder written by PEFT.
        resolution: Resolution of the images in pixels, one number or (height, width); by default that of the UNet's
            `sample_size`.
        prediction_type: "epsilon" or "v_prediction"; by default what the scheduler's configuration says. A single file
            has none; for it, the file's marker is used, or the type is measured.
        textual_inversion: Files of learned embeddings.
        variant: Variant of the weights to load if there is one, such as "fp16".

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
    """Assemble a Model from loaded parts.

    Args:
        parts: `unet`, `text_encoder`, `vae`, `tokenizer`, `scheduler_config` and, optionally, `about`.
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
        AuditError: The autoencoder does not fit the UNet, or the size of the images is unknown.
        UsageError: The resolution does not fit the autoencoder.
    """
    unet, text_encoder, vae = parts["unet"], parts["text_encoder"], parts["vae"]
    _place(parts, device)
    check_vae(vae.config, unet.config.in_channels, where)
    height, width = latent_size(unet.config, vae.config, resolution, where)
    # So that a pipeline of the model makes images of the same size, and diffusers' constructor changes nothing else.
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
    """Disable the progress bars of libraries inside the `with` block, because they would garble the caller's own."""
    libraries = [library for library in (transformers_logging, diffusers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
