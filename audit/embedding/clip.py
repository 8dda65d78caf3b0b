"""Load the two encoders of an open_clip model: from a local folder, by `name/tag`, or by name and weights file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.embedding.embedder import Embedder, embedder_of
from audit.errors import AuditError, first_line
from audit.images.decoding import rgb

if TYPE_CHECKING:
    from torch import Tensor

# Files of a folder written by `open_clip.push_to_hf_hub`.
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# Keys of a tag's configuration in open_clip that say how images are prepared.
PREPARATION = ("mean", "std", "interpolation", "resize_mode")


# Shapes: B images or texts, C channels, H and W pixels, K text positions, E embedding width.


def load_clip(name: str, weights: str, device: str = "cpu", model: str | None = None) -> Embedder:
    """Load an open_clip model as an embedder.

    No code in a pickle is run: open_clip reads weights with `weights_only`.

    Args:
        name: Name of the embedder in the audit.
        weights: A folder, `architecture/tag` (weights from the model hub or its cache), or a weights file.
        device: Device to run on.
        model: For a weights file, its architecture, with a tag if images are prepared differently from tag to tag.

    Returns:
        The embedder. Its `encode_text` is None if the tokenizer is not open_clip's own, because the tokenizer's files
        would have to come from a model hub.

    Raises:
        AuditError: The model does not load.
    """
    if model is None and Path(weights).is_dir():
        return _of_folder(name, Path(weights), device)
    architecture, tag = _known(model or weights)
    text = _text_config(architecture, model or weights)
    preparation = _preparation(architecture, tag)
    path = _fetched(architecture, tag) if model is None else Path(weights)
    if not path.is_file():
        raise AuditError("no such file", where=f"embedder {name}: {path}", hint=f"Set confirm.{name}.weights.")
    if path.suffix != ".safetensors":
        from audit.embedding.sscd import refuse_large

        refuse_large(path, path.stat().st_size)
    named = {f"image_{key}": value for key, value in preparation.items()}
    return _load(name, architecture, str(path), text, {path.name: path}, device, named)


def _of_folder(name: str, folder: Path, device: str) -> Embedder:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise AuditError(
                f"an open_clip folder holds {CONFIG} and {WEIGHTS}; there is no {file}",
                where=str(folder),
                hint="Save the model with open_clip's push_to_hf_hub.save_for_hf, with safe_serialization=True.",
            )
    files = {file: folder / file for file in (CONFIG, WEIGHTS)}
    model = f"local-dir:{folder}"
    return _load(name, model, None, _text_config(model, str(folder / CONFIG)), files, device, {})


def _load(
    name: str,
    model: str,
    weights: str | None,
    text: dict[str, Any],
    files: dict[str, Path],
    device: str,
    preparation: dict[str, Any],
) -> Embedder:
    """Load a model by open_clip's own names for it and its weights.

    Args:
        name: Name of the embedder in the audit.
        model: Name of the model in open_clip.
        weights: Weights file; None for a local folder.
        text: Configuration of the text tower.
        files: Files that the vectors depend on, by name.
        device: Device to run on.
        preparation: How images are prepared, as keyword arguments of open_clip.
    """
    open_clip = open_clip_library()
    try:
        network, transform = open_clip.create_model_from_pretrained(
            model, weights, device=device, weights_only=True, **preparation
        )
    except Exception as error:  # open_clip raises whatever its many model classes raise
        where = weights or model.removeprefix("local-dir:")
        raise AuditError(f"open_clip cannot load the model: {first_line(error)}", where=where) from error
    network = network.eval().requires_grad_(False)

    @cache
    def tokenizer() -> Callable[[list[str]], Tensor]:
        return open_clip.get_tokenizer(model)

    def encode_text(texts: Sequence[str]) -> Tensor:
        ids_BK = tokenizer()(list(texts))
        return network.encode_text(ids_BK.to(device))

    return embedder_of(
        name,
        files,
        f"{model if weights else 'open_clip'} {json.dumps(network.visual.preprocess_cfg, sort_keys=True)}",
        lambda image: transform(rgb(image)),
        network.encode_image,
        device,
        encode_text if "hf_tokenizer_name" not in text else None,
    )


def _text_config(model: str, where: str) -> dict[str, Any]:
    """Return the configuration of the text tower; raise AuditError if there is none or if it is on a model hub."""
    # open_clip would download it, but an audit runs offline.
    try:
        text: dict[str, Any] = open_clip_library().get_model_config(model).get("text_cfg", {})
    except (ValueError, KeyError, AttributeError) as error:
        raise AuditError("not an open_clip configuration", where=where) from error
    if "hf_model_name" in text:
        raise AuditError(
            f"its text tower ({text['hf_model_name']}) needs files from a model hub",
            where=where,
            hint="Give an open_clip model with a text tower of its own.",
        )
    return text


def _known(model: str) -> tuple[str, str | None]:
    """Split `architecture/tag` into architecture and tag (or None).

    Raises:
        AuditError: open_clip does not know the architecture or the tag, or the weights of the tag were trained with the
            activation of a sister architecture (for which open_clip only issues a warning).
    """
    open_clip = open_clip_library()
    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        hint = "Give a folder, architecture/tag such as ViT-B-32/laion2b_s34b_b79k, or `model` and a weights file."
        raise AuditError(f"open_clip knows no architecture {architecture!r}", where=model, hint=hint)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        hint = f"Known: {', '.join(tags)}."
        raise AuditError(f"open_clip knows no tag {tag!r} of {architecture}", where=model, hint=hint)
    quick = open_clip.get_model_config(architecture).get("quick_gelu", False)
    other = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
    trained = open_clip.pretrained.get_pretrained_cfg(architecture, tag).get("quick_gelu", False) if tag else quick
    if trained != quick and other != architecture and other in open_clip.list_models():
        what = f"the weights of {tag} were trained {'without' if quick else 'with'} QuickGELU"
        raise AuditError(what, where=model, hint=f"Use {other}/{tag}.")
    return architecture, tag or None


def _preparation(architecture: str, tag: str | None) -> dict[str, Any]:
    """Return how a tag prepares images; without a tag, the preparation that all tags of the architecture share."""
    open_clip = open_clip_library()
    tags = open_clip.list_pretrained_tags_by_model(architecture) if tag is None else [tag]
    found = [open_clip.pretrained.get_pretrained_cfg(architecture, tag) for tag in tags]
    known = [{key: cfg[key] for key in PREPARATION if key in cfg} for cfg in found]
    if any(other != known[0] for other in known):
        raise AuditError(
            f"the tags of {architecture} prepare images in more than one way",
            where=architecture,
            hint=f"Name the tag of the weights: {architecture}/TAG, with TAG one of {', '.join(tags)}.",
        )
    return known[0] if known else {}


def _fetched(architecture: str, tag: str | None) -> Path:
    open_clip = open_clip_library()
    try:
        return Path(
            open_clip.pretrained.download_pretrained(open_clip.pretrained.get_pretrained_cfg(architecture, tag))
        )
    except Exception as error:  # the hub's client raises what its own transport raises
        raise AuditError(
            f"the weights are not in the hub's cache and cannot be fetched: {first_line(error)}",
            where=f"{architecture}/{tag}",
            hint=f"Fetch them elsewhere, and set confirm.clip.model: {architecture}/{tag} and weights: the file.",
        ) from error


def open_clip_library() -> Any:
    """Import open_clip; raise AuditError if it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise AuditError("a CLIP embedder needs open_clip", hint="pip install open_clip_torch") from error
    return open_clip
