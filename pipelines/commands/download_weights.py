"""The command `crossaudit download-weights`."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
import zipfile
from contextlib import suppress
from enum import StrEnum
from http.client import HTTPException
from pathlib import Path
from typing import IO, Annotated

import typer

from audit.errors import AuditError
from pipelines.commands.options import Verbose

TIMEOUT = 60.0
CHUNK = 1 << 20


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

    known = "sscd_disc_mixup" if name is Name.sscd else name.value
    path = cache_folder() / PUBLISHED[known]
    typer.echo(address(known))
    if path.is_file():
        typer.echo("already in the cache")
    else:
        download(address(known), path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    typer.echo(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256}")


def download(url: str, path: Path) -> None:
    """Download a file to `path`. The file has a temporary name until the download is complete.

    Raises:
        AuditError: The file cannot be downloaded or written, or it does not hold weights.
    """
    hint = f"If this machine has no network, download the file elsewhere and copy it to {path}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        hint = "Set CROSSAUDIT_CACHE to a writable folder."
        raise AuditError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    try:
        with os.fdopen(descriptor, "wb") as sink:
            _copy(url, sink)
        if not zipfile.is_zipfile(temporary):
            raise AuditError("the downloaded file holds no weights (is it a proxy's page?)", where=url, hint=hint)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise AuditError(f"download failed: {error}", where=url, hint=hint) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _copy(url: str, sink: IO[bytes]) -> None:
    """Copy the content of a URL to a file.

    Raises:
        OSError: The connection closed before all of Content-Length arrived. urllib does not report this itself.
    """
    from rich.progress import Progress

    from pipelines.console.terminal import Console

    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        promised = response.headers.get("Content-Length")
        total, done = None if promised is None else int(promised), 0
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=total)
            while chunk := response.read(CHUNK):
                done += sink.write(chunk)
                progress.update(task, completed=done)
    if total is not None and done != total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
