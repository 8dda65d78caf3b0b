"""Copy models and weights that are named by a URI to this machine, once."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.fs as pafs

from audit.embedding.published import cache_folder
from audit.errors import AuditError
from audit.record.filesystem import open_filesystem

_CHUNK = 1 << 22
# Suffixes of weight files; the other files of a model folder are its configuration.
WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5")


def fetched(path: str, weights: bool = True) -> str:
    """Return the local path of a model folder or weights file, copied to the cache if a URI names it.

    A copy is identified by the URI and by the names, sizes and modification times of the files. It appears in the cache
    only when it is complete.

    Args:
        path: A path, which is returned as it is, or a URI.
        weights: Whether to copy the weights of a folder too. Its configuration can be read without them.

    Raises:
        AuditError: Nothing exists at the URI, or it cannot be copied.
    """
    if "://" not in path:
        return path
    filesystem, root = open_filesystem(path)
    root = root.rstrip("/")
    files = _files(filesystem, root, weights)
    if not files:
        raise AuditError("no such file or folder", where=path, hint="Check the path in the configuration.")
    known = sorted((name, info.size, info.mtime_ns) for name, info in files.items())
    digest = hashlib.sha256(json.dumps([path.rstrip("/"), known]).encode()).hexdigest()[:16]
    place = cache_folder() / "fetched" / digest
    copy = place / posixpath.basename(root)
    if not copy.exists():
        try:
            _fetch(filesystem, files, place, copy.name)
        except OSError as error:
            hint = f"Is there room in {place.parent}? CROSSAUDIT_CACHE names another cache."
            raise AuditError(f"cannot be copied: {error.strerror or error}", where=path, hint=hint) from error
    return str(copy)


def _files(filesystem: pafs.FileSystem, root: str, weights: bool) -> dict[str, pafs.FileInfo]:
    """Map relative names to the files in a folder and its subfolders. A single file has the empty name."""
    info = filesystem.get_file_info(root)
    if info.is_file:
        return {"": info}
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    wanted = [each for each in found if each.is_file and (weights or not each.path.endswith(WEIGHTS))]
    return {each.path.removeprefix(f"{root}/"): each for each in wanted}


def _fetch(filesystem: pafs.FileSystem, files: Mapping[str, pafs.FileInfo], place: Path, name: str) -> None:
    """Copy files to `place/name`.

    `place` appears only when all files are copied. If several processes copy at the same time, the first one wins.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        for below, info in files.items():
            target = folder / name / below
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(info.path) as content, target.open("wb") as sink:
                shutil.copyfileobj(content, sink, _CHUNK)
            if target.stat().st_size != info.size:
                raise OSError(f"{below or name} came with {target.stat().st_size} bytes instead of {info.size}")
        try:
            os.rename(folder, place)
        except OSError:
            if not place.exists():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
