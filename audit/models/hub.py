"""Find models of the Hugging Face hub in the cache on this machine, or download them into it."""

from __future__ import annotations

from pathlib import Path

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from huggingface_hub import snapshot_download

from audit.errors import AuditError, first_line
from audit.models.hub_ids import is_hub_id


def from_hub(path: str | Path, weights: bool = True, variant: str | None = None) -> Path:
    """Return the folder of a hub model, downloading it if necessary. Without a network, use the cached copy.

    Args:
        path: Id of the model, organisation/name.
        weights: Whether to download weights too, or only the configuration and the tokenizer.
        variant: Variant of the weights to download, such as "fp16".

    Returns:
        The folder of the model in the cache.

    Raises:
        AuditError: The path is not a hub id, or the model is not available.
    """
    if not is_hub_id(str(path)):
        hint = "Give a diffusers folder, a .safetensors file or a hub id."
        raise AuditError("no such model", where=str(path), hint=hint)
    try:
        if not weights:
            return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.txt"]))
        return Path(
            StableDiffusionPipeline.download(
                str(path),
                use_safetensors=True,
                variant=variant,
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
            )
        )
    except Exception as error:
        raise AuditError(
            f"no such folder, and not available from the hub: {first_line(error)}",
            where=str(path),
            hint="Give a diffusers folder, a .safetensors file or the id of a model with safetensors weights. If the "
            "hub has only fp16 weights, set model.variant: fp16.",
        ) from error
