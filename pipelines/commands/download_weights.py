"""The command `crossaudit download-weights`."""

from __future__ import annotations

import socket
import sys
import tempfile
import zipfile
from enum import StrEnum
from http.client import HTTPException
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import AuditError
from pipelines.commands.options import Verbose

# Seconds without an answer after which a download fails. torch.hub has no such limit of its own.
TIMEOUT = 60.0


class Name(StrEnum):
    """The weights that can be downloaded. `sscd` is short for `sscd_disc_mixup`."""

    sscd = "sscd"
    sscd_disc_mixup = "sscd_disc_mixup"
    sscd_disc_large = "sscd_disc_large"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit download-weights sscd")(download_weights)


def download_weights(
    name: Annotated[
        Name, typer.Argument(help="sscd is short for sscd_disc_mixup, the default of confirm.sscd.weights.")
    ],
    verbose: Verbose = False,
) -> None:
    """Download the published SSCD weights into the cache: $CROSSAUDIT_CACHE, or ~/.cache/crossaudit.

    Downloads from the address that the SSCD project publishes; its licence
    applies. Honours $https_proxy.
    """
    from audit.embedding.published import PUBLISHED, address, cache_folder
    from audit.models.files import sha256_of

    known = "sscd_disc_mixup" if name is Name.sscd else name.value
    path = cache_folder() / PUBLISHED[known]
    typer.echo(address(known))
    if path.is_file():
        typer.echo("already in the cache")
    else:
        download(address(known), path)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256_of([path])}")


def download(url: str, path: Path) -> None:
    """Download weights to `path`, which appears complete or not at all.

    Raises:
        AuditError: The file cannot be downloaded or written, or it does not hold weights.
    """
    import torch

    hint = f"If this machine has no network, download the file elsewhere and copy it to {path}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        where = "Set CROSSAUDIT_CACHE to a writable folder."
        raise AuditError(f"cannot be written: {error.strerror}", where=str(path), hint=where) from error
    patience = socket.getdefaulttimeout()
    with folder:
        file = Path(folder.name) / path.name
        try:
            socket.setdefaulttimeout(TIMEOUT)
            torch.hub.download_url_to_file(url, str(file), progress=sys.stderr.isatty())
            if not zipfile.is_zipfile(file):
                what = "the download is incomplete or holds no weights (is it a proxy's page?)"
                raise AuditError(what, where=url, hint=hint)
            file.replace(path)
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise AuditError(f"download failed: {error}", where=url, hint=hint) from error
        finally:
            socket.setdefaulttimeout(patience)
