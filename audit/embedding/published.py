"""Locate the published weights of SSCD (Pizzi et al., CVPR 2022) and the folder in which they are cached."""

from __future__ import annotations

import os
from pathlib import Path

from audit.errors import AuditError

# https://github.com/facebookresearch/sscd-copy-detection: the first is the project's default, with 512 dimensions. The
# second has 1024 dimensions and is published as TorchScript only.
PUBLISHED = {"sscd_disc_mixup": "sscd_disc_mixup.torchvision.pt", "sscd_disc_large": "sscd_disc_large.torchscript.pt"}
ADDRESS = "https://dl.fbaipublicfiles.com/sscd-copy-detection"


def cache_folder() -> Path:
    """Return the cache folder: `$CROSSAUDIT_CACHE`, or ~/.cache/crossaudit."""
    return Path(os.environ.get("CROSSAUDIT_CACHE") or "~/.cache/crossaudit").expanduser()


def address(name: str) -> str:
    """Return the URL at which the SSCD project publishes these weights."""
    return f"{ADDRESS}/{PUBLISHED[name]}"


def find(name: str) -> Path:
    """Find published weights in the cache folder.

    Raises:
        AuditError: They are not there; the message says how to get them.
    """
    path = cache_folder() / PUBLISHED[name]
    if not path.is_file():
        raise AuditError(
            f"{name} is not in the cache",
            where=str(path),
            hint=f"`crossaudit download-weights {name}` downloads it. Without a network, download {address(name)} "
            "elsewhere and copy it there.",
        )
    return path
