"""Find the weights files of a diffusers folder's components, read its JSON files, and hash files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from audit.errors import AuditError, first_line

CONVERT = (
    "A pickle can run code. Convert it only if you trust it: "
    "StableDiffusionPipeline.from_pretrained(folder).save_pretrained(new_folder)."
)
CONVERT_SINGLE = (
    "A pickle can run code. Convert it only if you trust it: "
    "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)."
)


def stem(component: str) -> str:
    """Return the name of a network's weights file without its suffix: transformers wrote the text encoders."""
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def weights_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Find the weights files of a component.

    Args:
        folder: Folder of the component, such as `unet`, `vae` or `text_encoder`.
        variant: Variant to use if there is one, such as "fp16". By default the weights without a variant, or the only
            variant if all weights have one.

    Returns:
        One .safetensors file, or the shards of an index in order.

    Raises:
        AuditError: There are no such weights, there are only pickles, or it is ambiguous which weights to use.
    """
    found = variants(folder)
    if variant in found:
        return found[variant]
    if None in found:
        return found[None]
    names = sorted(name for name in found if name is not None)
    if len(names) == 1 and variant is None:
        return found[names[0]]
    if names:
        what = f"it holds the variants {', '.join(names)} of the weights, " + (
            "and none without a variant" if variant is None else f"and no variant {variant}"
        )
        raise AuditError(what, where=str(folder), hint=f"Set model.variant (variant=) to {' or '.join(names)}.")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".ckpt", ".pt", ".pth"})
    if pickles:
        raise AuditError(f"{pickles[0]} is a pickle; refused", where=str(folder), hint=CONVERT, kind="pickle")
    raise AuditError(f"no {stem(folder.name)}.safetensors", where=str(folder), hint="Give a complete diffusers folder.")


def variants(folder: Path) -> dict[str | None, list[Path]]:
    """List the weights files of a component by variant; None stands for weights without a variant."""
    name = re.escape(stem(folder.name))
    single = re.compile(rf"{name}(?:\.(?P<variant>[\w.]+?))?\.safetensors")
    index = re.compile(rf"{name}\.safetensors\.index(?:\.(?P<variant>[\w.]+?))?\.json")
    found: dict[str | None, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := single.fullmatch(file.name):
            found[match["variant"]] = [file]
        elif match := index.fullmatch(file.name):
            found.setdefault(match["variant"], _shards(file))
    return found


def _shards(index: Path) -> list[Path]:
    """List the files that an index names. Raise AuditError if one is missing or in another folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise AuditError("it names no weights", where=str(index), hint="Download the folder again.")
    shards = [index.parent / str(name) for name in sorted(set(names.values()))]
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            what = f"it names {shard.name}, which is not in this folder"
            raise AuditError(what, where=str(index), hint="Download the missing files.")
    return shards


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object. Raise AuditError if it cannot be read or holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"not readable as JSON: {first_line(error)}"
        raise AuditError(what, where=str(file), hint="Is the file damaged or missing?") from error
    if not isinstance(content, dict):
        raise AuditError("it is not a JSON object", where=str(file), hint="Is the file damaged?")
    return content


def sha256_of(files: Sequence[Path]) -> str:
    """Hash files: for one file, the output of `sha256sum`; for several, the sha256 of those hashes, one per line."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def few(names: Iterable[str], count: int = 3) -> str:
    """Join the first few of many names for a message.

    Args:
        names: The names.
        count: Number of names to show.
    """
    listed = sorted(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
