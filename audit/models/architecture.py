"""Decide from its configuration whether a checkpoint is supported; refuse all others with an error that names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from audit.errors import AuditError, UsageError
from audit.models.files import read_json

SUPPORTED = (
    "Supported: text-to-image pipelines of Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, FLUX.1, PixArt and SANA, and "
    "others that diffusers lists as text-to-image, by their predicted noise."
)
# Pipelines with the components of text-to-image; any of them runs as StableDiffusionPipeline.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
# Inputs of a UNet besides latents, time and text, by the configuration key that adds them.
_INPUTS = {
    "time_cond_proj_dim": "an embedding of the guidance scale, as in latent consistency models",
    "class_embed_type": "class embeddings",
    "num_class_embeds": "class embeddings",
    "addition_embed_type": "addition embeddings, as in Stable Diffusion XL",
    "encoder_hid_dim": "a projection of other hidden states",
    "encoder_hid_dim_type": "a projection of other hidden states",
}
_CHANNELS = {8: "as InstructPix2Pix", 9: "as inpainting", 7: "as an upscaler", 5: "as depth-to-image"}
# Names under which classes of networks were published first.
_FORMER_NAMES = {"PixArtTransformer2DModel": "Transformer2DModel"}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def check_folder(folder: Path) -> None:
    """Check that a folder has the layout of a supported diffusers pipeline. No weights are read.

    Raises:
        AuditError: It does not; the message names the pipeline or component class that is not supported.
    """
    index = folder / "model_index.json"
    listed = read_json(index) if index.is_file() else {}
    kind = listed.get("_class_name")
    if not (folder / "unet").is_dir():
        raise _unsupported(f"no unet/ in this folder{f' ({kind})' if kind else ''}", folder)
    for name in ("text_encoder", "vae", "tokenizer", "scheduler"):
        if not (folder / name).is_dir():
            raise AuditError(f"no {name}/ in this folder", where=str(folder), hint="Give a complete diffusers folder.")
    if (folder / "text_encoder_2").is_dir():
        raise _unsupported(f"two text encoders ({kind})", folder)
    if kind is not None and kind not in PIPELINES:
        hint = f"{SUPPORTED} If it is one: set _class_name in model_index.json to StableDiffusionPipeline."
        raise AuditError(f"this is a {kind}", where=str(index), hint=hint, kind="unsupported_model")
    unet, vae, encoder = (read_json(folder / name / "config.json") for name in ("unet", "vae", "text_encoder"))
    text = (encoder.get("architectures") or [encoder.get("model_type")])[0]
    if unet.get("_class_name") != "UNet2DConditionModel" or text not in ("CLIPTextModel", "clip_text_model"):
        raise _unsupported(f"this is {unet.get('_class_name')} + {text}", folder)
    if vae.get("_class_name") != "AutoencoderKL":
        raise _unsupported(f"the autoencoder is {vae.get('_class_name')}, not AutoencoderKL", folder)
    for name, config in (("unet", unet), ("vae", vae), ("text_encoder", encoder)):
        _check_quantization(config, folder / name)
    _check_tokenizer(folder / "tokenizer")


def check_parts(folder: Path, networks: Mapping[str, type], tokenizers: Iterable[str]) -> None:
    """Check that a diffusers folder has the parts of a family. No weights are read.

    Args:
        folder: The folder.
        networks: Class of each network, by the name of its folder.
        tokenizers: Names of the tokenizers.

    Raises:
        AuditError: A part is missing, of another class, or quantized.
    """
    for name in (*networks, *tokenizers, "scheduler"):
        if not (folder / name).is_dir():
            raise AuditError(f"no {name}/ in this folder", where=str(folder), hint="Give a complete diffusers folder.")
    for name, kind in networks.items():
        config = read_json(folder / name / "config.json")
        found = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if found not in (None, kind.__name__, _FORMER_NAMES.get(kind.__name__)):
            raise _unsupported(f"{name} is {found}, not {kind.__name__}", folder)
        _check_quantization(config, folder / name)


def check_unet(config: Mapping[str, Any], where: str, addition: str | None = None) -> None:
    """Check that a UNet has no inputs other than latents, time and text.

    Args:
        config: Configuration of the UNet.
        where: The model, for errors.
        addition: The type of addition embeddings that it must have.

    Raises:
        AuditError: It has other inputs.
    """
    expected = {"addition_embed_type": addition}
    extra = [f"{name} ({what})" for name, what in _INPUTS.items() if config.get(name) != expected.get(name)]
    inputs, outputs = config["in_channels"], config["out_channels"]
    if inputs != outputs:
        like = f" ({_CHANNELS[inputs]})" if inputs in _CHANNELS else ""
        extra.append(f"{inputs} input and {outputs} output channels{like}")
    if extra:
        raise _unsupported(f"the UNet has {', '.join(extra)}", where)


def check_vae(config: Mapping[str, Any], channels: int, where: str, applied: Sequence[str] = ()) -> None:
    """Check that the pipeline would run an autoencoder as its configuration says.

    Args:
        config: Configuration of the autoencoder.
        channels: Number of latent channels of the denoiser.
        where: The model, for errors.
        applied: Statistics of the latents that the pipeline applies.

    Raises:
        AuditError: It would not.
    """
    for name in ("latents_mean", "latents_std", "shift_factor"):
        if config.get(name) and name not in applied:
            raise _unsupported(f"the VAE has {name}, which its pipeline does not apply", where)
    if config["latent_channels"] != channels:
        what = f"the VAE has {config['latent_channels']} latent channels and the denoiser {channels}"
        raise _unsupported(what, where)
    made = config.get("out_channels", config["in_channels"])  # AutoencoderDC makes as many as it takes
    if made != 3:
        raise _unsupported(f"the VAE makes images of {made} channels, not 3", where)


def check_text(tokenizer: Any, text_encoder: Any, unet: Mapping[str, Any], where: str, made: int | None = None) -> None:
    """Check that tokenizer, text encoder and UNet fit together.

    Args:
        tokenizer: The tokenizer.
        text_encoder: The text encoder; it may be on the `meta` device.
        unet: Configuration of the UNet.
        where: The model, for errors.
        made: Width of the hidden states, if it is not that of this text encoder alone.

    Raises:
        AuditError: They do not fit.
    """
    check_vocabulary(tokenizer, text_encoder, where)
    width = unet["cross_attention_dim"]
    widths = set(width) if isinstance(width, list | tuple) else {width}
    made = made or text_encoder.config.hidden_size
    if widths != {made}:
        what = f"the UNet attends to hidden states of {width} values; the text encoder makes "
        raise _unsupported(f"{what}{made}", where)


def check_vocabulary(tokenizer: Any, text_encoder: Any, where: str) -> None:
    """Check that a text encoder has an embedding for each token of its tokenizer.

    Args:
        tokenizer: The tokenizer.
        text_encoder: The text encoder; it may be on the `meta` device.
        where: The model, for errors.

    Raises:
        AuditError: It has too few.
    """
    rows = text_encoder.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        what = f"the tokenizer has the token {token!r} of id {highest}, and the text encoder {rows} embeddings"
        raise AuditError(what, where=where, hint="Take tokenizer and text_encoder from the same save_pretrained.")


def check_width(found: int, taken: int, what: str, where: str) -> None:
    """Check that the transformer takes vectors of the width that a text encoder makes.

    Args:
        found: Width of the vectors that are made.
        taken: Width of those that are taken.
        what: What the vectors are.
        where: The model, for errors.

    Raises:
        AuditError: The widths differ.
    """
    if found != taken:
        hint = "Take transformer and text encoders from the same model."
        message = f"the transformer takes {what} of {taken} values; the text encoders make {found}"
        raise AuditError(message, where=where, hint=hint, kind="unsupported_model")


def latent_size(
    unet: Mapping[str, Any], vae: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
) -> tuple[int, int]:
    """Determine the height and width of the latents.

    Args:
        unet: Configuration of the UNet. Its `sample_size` is used; if diffusers older than 0.9 wrote it and it is below
            64, it counts as 64, as in `StableDiffusionPipeline.__init__`.
        vae: Configuration of the autoencoder, which determines the number of pixels per latent.
        resolution: Resolution in pixels, one number or (height, width); overrides the configuration.
        where: The model, for errors.

    Returns:
        The height and width of the latents, in latent pixels.

    Raises:
        AuditError: Neither the configuration nor the argument gives a size.
        UsageError: The resolution does not fit the autoencoder.
    """
    if resolution is not None:
        scale = pixels_per_latent(vae)
        hint = f"Set model.resolution (resolution=) to a multiple of {scale}, or [height, width]."
        height, width = checked_size(resolution, scale, where, hint)
        return height // scale, width // scale
    size, version = unet.get("sample_size"), unet.get("_diffusers_version")
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        old = version is not None and Version(Version(str(version)).base_version) < Version("0.9.0.dev0")
        size = 64 if old and size < 64 else size
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(each, int) and each > 0 for each in size):
        return size[0], size[1]
    hint = "Set model.resolution (resolution=) to the resolution that it was trained at, in pixels, such as 512."
    raise AuditError(f"sample_size in unet/config.json is {size!r}", where=where, hint=hint)


def pixels_per_latent(vae: Mapping[str, Any]) -> int:
    """Return the width in pixels of one latent pixel."""
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # AutoencoderKL or AutoencoderDC
    return int(2 ** (len(blocks) - 1))


def checked_size(resolution: int | Sequence[int], multiple: int, where: str, hint: str) -> tuple[int, int]:
    """Return a resolution as height and width.

    Args:
        resolution: Resolution in pixels, one number or (height, width).
        multiple: What both must be divisible by.
        where: The setting or model, for errors.
        hint: What to do if they are not.

    Raises:
        UsageError: They are not.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise UsageError(f"the resolution is {height} x {width}", where=where, hint=hint)
    return height, width


def _check_quantization(config: Mapping[str, Any], place: Path) -> None:
    if config.get("quantization_config"):
        what = "the weights are quantized (quantization_config)"
        hint = "Give the weights in float32, float16 or bfloat16."
        raise AuditError(what, where=str(place), hint=hint, kind="unsupported_model")


def _check_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    kind = read_json(file).get("tokenizer_class") if file.is_file() else None
    if kind is not None and kind not in _TOKENIZERS:
        raise _unsupported(f"the tokenizer is {kind}, not CLIPTokenizer", folder)


def _unsupported(what: str, where: str | Path) -> AuditError:
    return AuditError(what, where=str(where), hint=SUPPORTED, kind="unsupported_model")
