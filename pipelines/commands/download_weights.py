"""crossaudit download-weights"""

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
    """What can be downloaded; sscd is sscd_disc_mixup."""

    sscd = "sscd"
    sscd_disc_mixup = "sscd_disc_mixup"
    sscd_disc_large = "sscd_disc_large"


def register(app: typer.Typer, panel: str) -> None:
    app.command(rich_help_panel=panel, epilog="Example: crossaudit download-weights sscd")(download_weights)


def download_weights(
    name: Annotated[Name, typer.Argument(help="sscd is sscd_disc_mixup, the default of confirm.sscd.weights.")],
    verbose: Verbose = False,
) -> None:
    """Download the published weights of SSCD into the cache: $CROSSAUDIT_CACHE, or ~/.cache/crossaudit.

    From the SSCD project's own address (its licence holds for them), through the proxy that $https_proxy names if any.
    """
    from audit.embedding.published import PUBLISHED, address, cache_folder

    known = "sscd_disc_mixup" if name is Name.sscd else name.value
    path = cache_folder() / PUBLISHED[known]
    typer.echo(address(known))
    if path.is_file():
        typer.echo("is in the cache already")
    else:
        download(address(known), path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    typer.echo(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256}")


def download(url: str, path: Path) -> None:
    """The file at `url`, under a temporary name until it is whole. Raises AuditError that says what to put where."""
    hint = f"Without a network: download it elsewhere, and put it at {path}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        hint = "Set CROSSAUDIT_CACHE to a folder that can be written."
        raise AuditError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    try:
        with os.fdopen(descriptor, "wb") as sink:
            _copy(url, sink)
        if not zipfile.is_zipfile(temporary):
            raise AuditError("what came is no file of weights (a page of a proxy?)", where=url, hint=hint)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise AuditError(f"cannot be downloaded: {error}", where=url, hint=hint) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _copy(url: str, sink: IO[bytes]) -> None:
    """Raises OSError if fewer bytes come than were promised: urllib takes an early end for the end."""
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
