"""An open_clip image encoder from a local folder, as `open_clip.push_to_hf_hub` lays it out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audit.embedding.descriptor import flatten
from audit.errors import AuditError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def load_clip(folder: Path, device: str = "cpu") -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """The preprocessing and the image encoder of the model in `folder`, offline; AuditError if it does not load."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AuditError(
                f"an open_clip folder holds {CONFIG} and {WEIGHTS}; there is no {name}",
                where=str(folder),
                do="Save the model with open_clip's push_to_hf_hub.save_for_hf, with safe_serialization=True.",
            )
    _refuse_hub(folder)
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
    return lambda image: transform(flatten(image)), model.encode_image


def _refuse_hub(folder: Path) -> None:
    # open_clip would fetch the text tower's configuration from the hub: an audit runs offline.
    try:
        text = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"].get("text_cfg", {})
    except (ValueError, KeyError, AttributeError) as error:
        raise AuditError("not an open_clip configuration", where=str(folder / CONFIG)) from error
    if "hf_model_name" in text:
        raise AuditError(
            f"its text tower ({text['hf_model_name']}) needs files from a model hub",
            where=str(folder / CONFIG),
            do="Give an open_clip model with a text tower of its own.",
        )
