"""The two encoders of an open_clip model in a local folder, as `open_clip.push_to_hf_hub` lays it out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from audit.embedding.descriptor import flatten
from audit.errors import AuditError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


# Shapes: B images or texts, C channels, H and W pixels, K text positions, E embedding width.


class Clip(NamedTuple):
    """`preprocess`: one image to [C, H, W]; `encode`: images [B, C, H, W] to [B, E]; `encode_text`: B texts to [B, E].

    `encode_text` is None where the tokenizer is not open_clip's own: its files would come from a model hub.
    """

    preprocess: Callable[[Image.Image], Tensor]
    encode: Callable[[Tensor], Tensor]
    encode_text: Callable[[Sequence[str]], Tensor] | None


def load_clip(folder: Path, device: str = "cpu") -> Clip:
    """The model in `folder`, offline; AuditError if it does not load."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AuditError(
                f"an open_clip folder holds {CONFIG} and {WEIGHTS}; there is no {name}",
                where=str(folder),
                do="Save the model with open_clip's push_to_hf_hub.save_for_hf, with safe_serialization=True.",
            )
    text = _text_config(folder)
    try:
        import open_clip
    except ImportError as error:
        raise AuditError(
            "a CLIP embedder needs open_clip", where=str(folder), do="pip install open_clip_torch"
        ) from error
    try:
        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}", device=device)
    except Exception as error:  # open_clip raises whatever its many model classes raise
        raise AuditError(f"open_clip cannot load the model: {str(error).splitlines()[0]}", where=str(folder)) from error
    model = model.eval().requires_grad_(False)

    @cache
    def tokenizer() -> Callable[[list[str]], Tensor]:
        return open_clip.get_tokenizer(f"local-dir:{folder}")

    def encode_text(texts: Sequence[str]) -> Tensor:
        ids_BK = tokenizer()(list(texts))
        return model.encode_text(ids_BK.to(device))

    offline = "hf_tokenizer_name" not in text
    return Clip(lambda image: transform(flatten(image)), model.encode_image, encode_text if offline else None)


def _text_config(folder: Path) -> dict[str, Any]:
    """The configuration of the text tower; AuditError if there is none or if it lies on a model hub."""
    # open_clip would fetch it from there: an audit runs offline.
    try:
        text: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"].get("text_cfg", {})
    except (ValueError, KeyError, AttributeError) as error:
        raise AuditError("not an open_clip configuration", where=str(folder / CONFIG)) from error
    if "hf_model_name" in text:
        raise AuditError(
            f"its text tower ({text['hf_model_name']}) needs files from a model hub",
            where=str(folder / CONFIG),
            do="Give an open_clip model with a text tower of its own.",
        )
    return text
