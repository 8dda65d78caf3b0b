"""Write files with pictures, and record them in the manifest so that `crossaudit purge` can remove them."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs as pafs

from audit.duplicates.captions import caption_id
from audit.errors import AuditError
from audit.record.filesystem import write_local
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.record.manifest_entries import PictureFile
from pipelines.engine.manifest import NAME, Manifest, read
from pipelines.engine.owner import Owner

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".htm", ".html")


@dataclass
class Files:
    """The files that a purge removed, and those that it left, each with the reason."""

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def write_picture(run: str | None, out: Path, content: bytes, caption: str) -> str | None:
    """Write a file that shows a generation, after recording it in the manifest of its run.

    Args:
        run: The run, or None.
        out: The file to write.
        content: The content of the file.
        caption: The caption of the generation.

    Returns:
        Why `crossaudit purge` will not find the file, or None if it will.

    Raises:
        AuditError: The file cannot be written.
    """
    problem = "it does not belong to a run" if run is None else _record(run, out.resolve(), content, caption)
    try:
        write_local(out, content)
    except OSError as error:
        hint = "Choose another --out."
        raise AuditError(
            f"cannot be written: {os.strerror(error.errno or errno.EIO)}", where=str(out), hint=hint
        ) from error
    return problem


def run_of(out: Path, calibration: Path | None = None) -> str | None:
    """Return the run that a file belongs to: the run of the calibration, or the run whose folder contains the file."""
    folders = [*([] if calibration is None else [calibration.resolve().parent]), *out.resolve().parents]
    return next((str(folder) for folder in folders if (folder / NAME).is_file()), None)


def remove_files(ledger: Ledger, manifest: Manifest, goes: Callable[[str], bool]) -> Files:
    """Remove the recorded files of certain captions, and drop them from the manifest.

    A file on another machine, or one that has changed since it was written, stays on disk and in the manifest.

    Args:
        ledger: The run.
        manifest: Its manifest.
        goes: Returns whether the files of a caption_id are to be removed.

    Returns:
        Which files were removed and which were kept, with the reasons.

    Raises:
        AuditError: A file cannot be removed.
    """
    files, kept = Files(), []
    for entry in manifest.data.pictures:
        if not goes(entry.caption_id):
            kept.append(entry)
        elif reason := _remove(entry):
            kept.append(entry)
            files.left.append(f"{entry.file}: {reason}")
        else:
            files.removed.append(entry.file)
    if manifest.data.pictures:
        manifest.data.pictures = kept
    known = {entry.file for entry in kept}
    files.left += [f"{path}: not written by this run's commands" for path in strangers(ledger) if path not in known]
    return files


def due(manifest: RunManifest, goes: Callable[[str], bool]) -> bool:
    """Return whether this machine has recorded files to remove."""
    here = socket.gethostname()
    return any(goes(entry.caption_id) and entry.host == here for entry in manifest.pictures)


def strangers(ledger: Ledger) -> list[str]:
    """Return the files in the folder of a run that may show pictures, other than the report."""
    selector = pafs.FileSelector(ledger.root, recursive=True, allow_not_found=True)
    found = [info.path for info in ledger.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    return sorted(path for path in found if path.lower().endswith(_SUFFIXES) and path != ledger.path("report.html"))


def _record(run: str, file: Path, content: bytes, caption: str) -> str | None:
    """Add a file to the manifest of a run. Returns the reason if that fails, else None."""
    entry = PictureFile(
        host=socket.gethostname(),
        file=str(file),
        sha256=hashlib.sha256(content).hexdigest(),
        caption_id=caption_id(caption),
    )
    try:
        if problem := _unfit(read(run)):
            return problem
        ledger = Ledger(run)
        with Owner(ledger):
            data = read(run)  # another process may have changed it before we became the owner
            if problem := _unfit(data):
                return problem
            others = [other for other in data.pictures if (other.host, other.file) != (entry.host, entry.file)]
            data.pictures = [*others, entry]
            Manifest(ledger, data).write()
    except (AuditError, OSError) as error:
        return f"cannot write to its run: {str(error).splitlines()[0]}"
    return None


def _unfit(manifest: RunManifest) -> str | None:
    """Return why files cannot be recorded in a manifest, or None if they can."""
    if manifest.kind != "audit":
        return "it does not belong to a run"
    return "its run is not finished" if manifest.finished is None else None


def _remove(entry: PictureFile) -> str | None:
    """Remove a recorded file. Returns the reason if the file stays, else None."""
    if entry.host != socket.gethostname():
        return f"written on {entry.host}"
    path = Path(entry.file)
    try:
        if not path.is_file():
            return None
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
            return "changed since it was written"
        path.unlink()
    except OSError as error:
        hint = "Remove the file yourself, then rerun the command."
        raise AuditError(f"cannot be removed: {error.strerror}", where=entry.file, hint=hint) from error
    return None
