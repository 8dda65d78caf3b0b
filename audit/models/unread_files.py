"""List what a model folder contains but loading does not read, so that nobody takes it for audited."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_CONFIGS = {"model_index.json", "scheduler/scheduler_config.json"}


def files_not_read(folder: Path, read: Iterable[Path]) -> list[str]:
    """List the files of a diffusers folder that loading it does not read.

    Args:
        folder: The folder.
        read: Weights files that are read. Configurations, all files in `tokenizer/` or `tokenizer_2/` and the indices
            of sharded weights count as read too.

    Returns:
        Paths relative to the folder, sorted. A subfolder of which nothing is read is one entry, such as
        `safety_checker/ (3 files)`. Hidden files and folders are left out.
    """
    known = _CONFIGS | {file.relative_to(folder).as_posix() for file in read}
    known |= {f"{Path(name).parent.as_posix()}/config.json" for name in known}
    known |= {f"{Path(name).parent.as_posix()}/{_index_of(name)}" for name in known if "-of-" in name}
    left: dict[str, list[str]] = {}
    used: set[str] = set()
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        top = relative.parts[0] if len(relative.parts) > 1 else ""
        if relative.as_posix() in known or (top.startswith("tokenizer") and len(relative.parts) == 2):
            used.add(top)
        else:
            left.setdefault(top, []).append(relative.as_posix())
    found = []
    for top, names in left.items():
        whole = top and top not in used
        count = f"{len(names)} file{'s' if len(names) > 1 else ''}"
        found += [f"{top}/ ({count})"] if whole else names
    return sorted(found)


def _index_of(shard: str) -> str:
    """Return the name of the index of a shard such as `model-1-of-2.safetensors` or `model.fp16-1-of-2.safetensors`."""
    name, _, variant = Path(shard).name.partition("-")[0].partition(".")
    return f"{name}{Path(shard).suffix}.index{f'.{variant}' if variant else ''}.json"
