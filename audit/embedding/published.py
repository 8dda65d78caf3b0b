"""The published weights of SSCD (Pizzi et al., CVPR 2022), and the folder where they are kept."""

from __future__ import annotations

import os
from pathlib import Path

from audit.errors import AuditError

# https://github.com/facebookresearch/sscd-copy-detection: the first is its default, of 512 dimensions; the second,
# of 1024, is published as TorchScript alone.
PUBLISHED = {"sscd_disc_mixup": "sscd_disc_mixup.torchvision.pt", "sscd_disc_large": "sscd_disc_large.torchscript.pt"}
ADDRESS = "https://dl.fbaipublicfiles.com/sscd-copy-detection"


def cache_folder() -> Path:
    """`$CROSSAUDIT_CACHE`, or ~/.cache/crossaudit."""
    return Path(os.environ.get("CROSSAUDIT_CACHE") or "~/.cache/crossaudit").expanduser()


def address(name: str) -> str:
    """Where the project publishes the weights of that name."""
    return f"{ADDRESS}/{PUBLISHED[name]}"


def find(name: str) -> Path:
    """The weights of that name in the cache folder; AuditError that says how they come there."""
    path = cache_folder() / PUBLISHED[name]
    if not path.is_file():
        raise AuditError(
            f"{name} is not in the cache",
            where=str(path),
            hint=f"`crossaudit download-weights {name}` puts it there. Without a network, download {address(name)} "
            "elsewhere and copy it there.",
        )
    return path
