"""Add textual inversions (arXiv 2208.01618): new tokens and their embeddings, one or several vectors per token.

Loading and prompt expansion are those of diffusers (`TextualInversionLoaderMixin`).
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audit.errors import AuditError, UsageError, first_line
from audit.models.files import few

# Shapes: V vectors of a token, D width of the text encoder.


@dataclass(frozen=True)
class TextualInversion:
    """A file of learned embeddings, and the token that captions use for it if the file does not name one."""

    path: str | Path
    token: str | None = None


def add_textual_inversion(inversions: Sequence[TextualInversion], parts: Mapping[str, Any]) -> None:
    """Add tokens to the tokenizer and their embeddings to the text encoder, in place, as diffusers does.

    Args:
        inversions: The files: .safetensors, or .pt and .bin, which are read without running code.
        parts: The loaded model: `tokenizer`, `text_encoder`, `unet` and `vae`.

    Raises:
        AuditError: A file is not an embedding, does not fit the text encoder, or names a token that already exists.
    """
    pipeline = StableDiffusionPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet")},
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for inversion in inversions:
        token, vectors_VD = _read(inversion)
        width = parts["text_encoder"].config.hidden_size
        if vectors_VD.ndim not in (1, 2) or vectors_VD.shape[-1] != width:
            what = f"its embedding has shape {list(vectors_VD.shape)}; the text encoder has {width} values per token"
            raise AuditError(what, where=str(inversion.path), hint="Give an embedding that was learned for this model.")
        if not vectors_VD.isfinite().all():
            hint = "Train the embedding again."
            raise AuditError("its embedding has values that are NaN or infinite", where=str(inversion.path), hint=hint)
        try:
            with _quiet():
                pipeline.load_textual_inversion({token: vectors_VD}, token=token)
        except ValueError as error:
            hint = "Give another token: {path: ..., token: ...}."
            raise AuditError(first_line(error), where=str(inversion.path), hint=hint) from error


def tokens_of_several_vectors(tokenizer: Any) -> list[str]:
    """List the added tokens that stand for several vectors: `<x>` if `<x>_1` is also a token.

    Raises:
        AuditError: Such a token is part of another one. What diffusers makes of the longer token then depends on the
            iteration order of a set.
    """
    added = set(tokenizer.added_tokens_encoder)
    several = sorted(token for token in added if f"{token}_1" in added)
    for token in several:
        own = {f"{token}_{number}" for number in range(1, len(added))}
        others = [other for other in added - own - {token} if token in other]
        if others:
            what = f"the token {token!r} stands for several vectors and is part of another token ({few(others)})"
            raise AuditError(what, where="textual inversion", hint="Rename one of the two tokens.")
    return several


def expanded(captions: Sequence[str], tokenizer: Any) -> list[str]:
    """Replace each token of several vectors by that many tokens, as `maybe_convert_prompt` of diffusers does."""
    found: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(list(captions), tokenizer)
    return found


def _read(inversion: TextualInversion) -> tuple[str, Tensor]:
    """Read a file in the format of diffusers or A1111: (token, vectors [V, D] or [D])."""
    path = Path(inversion.path)
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="Correct model.textual_inversion.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        hint = "Give the embedding as .safetensors; a pickle that needs code to load is refused."
        raise AuditError(f"the embedding does not load: {first_line(error)}", where=str(path), hint=hint) from error
    token, vectors_VD = _embedding(content, str(path))
    if inversion.token is None and token in (None, "emb_params"):
        hint = "Say which token captions use: model.textual_inversion: [{path: ..., token: ...}]."
        raise AuditError("the file does not name its token", where=str(path), hint=hint)
    return inversion.token or str(token), vectors_VD.detach()


def _embedding(content: Any, where: str) -> tuple[str | None, Tensor]:
    if isinstance(content, Tensor):
        return None, content
    if isinstance(content, Mapping):
        if {"clip_l", "clip_g"} & content.keys():
            what = "this is an embedding for Stable Diffusion XL (clip_l, clip_g)"
            raise AuditError(what, where=where, hint="Give one for Stable Diffusion 1.x or 2.x.")
        if "string_to_param" in content and isinstance(content["string_to_param"], Mapping):
            token, vectors = content.get("name"), content["string_to_param"].get("*")
            if isinstance(vectors, Tensor):
                return None if token is None else str(token), vectors
        elif len(content) == 1:
            ((token, vectors),) = content.items()
            if isinstance(vectors, Tensor):
                return str(token), vectors
    hint = "Give a file with one embedding, as diffusers or A1111 writes it."
    raise AuditError("this is not a textual inversion", where=where, hint=hint)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning of transformers that new embeddings need training; these are trained."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
