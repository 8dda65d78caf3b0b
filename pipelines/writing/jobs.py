"""Find the files of a dataset to copy, with their names and roles in the audit."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Container, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import AuditError, UsageError
from audit.record.filesystem import open_file
from pipelines.reading.caption_files import Sidecar, with_sidecars
from pipelines.reading.captions import known
from pipelines.reading.files import File, find
from pipelines.reading.folders import is_image
from pipelines.writing.exclusions import Exclusions, part_of
from pipelines.writing.text import ANOTHER

_PACKED = (".parquet", ".tar")
# What is dropped from a file: rows, samples of a tar, lines, or the whole file (an image, or a text file with one
# caption).
ROWS, SAMPLES, LINES, WHOLE = "rows", "samples", "lines", "whole"


@dataclass(frozen=True)
class CopyTask:
    """Describe one file to copy.

    Attributes:
        uri: The file.
        name: Its name in the audit.
        kind: What is dropped from it: ROWS, SAMPLES, LINES or WHOLE.
        role: What the audit read from it: "captions", "images" or "both".
        part: The exclusions that must be found in it (row, key, caption_id, action).
        rows: The number of rows it had when it was audited, if known.
        images: The number of images it had when it was audited, if known.
        target: Where the copy goes.
    """

    uri: str
    name: str
    kind: str
    role: str
    part: pa.Table
    rows: int | None
    images: int | None
    target: str = ""

    @property
    def base(self) -> str:
        """Return the folder that the name is relative to."""
        return self.uri.replace(os.sep, "/").removesuffix(self.name)

    @property
    def unit(self) -> str:
        """Return the unit in which the file is counted, SAMPLES or ROWS."""
        return SAMPLES if self.kind == SAMPLES else ROWS

    @property
    def is_image(self) -> bool:
        """Return whether the file is a single image."""
        return self.kind == WHOLE and self.role == "images"


def find_jobs(exclusions: Exclusions, dataset: Sequence[str]) -> tuple[list[CopyTask], list[str]]:
    """Find the files of the audit among paths, folders and globs.

    Returns:
        A task for each file that was part of the audit, and the URIs of other files with a known format.

    Raises:
        UsageError: A Parquet file or tar was not part of the audit, a path matches no file of the audit, or two files
            have the same name in the audit.
    """
    found: dict[tuple[str, str], CopyTask] = {}
    strange: dict[str, None] = {}
    listed = {pattern: _listed(pattern) for pattern in dataset}
    # Different patterns may match a caption and its image.
    every = [file for files in listed.values() for file in files]
    for pattern, files in listed.items():
        jobs = [(file, _job(file, exclusions)) for file in with_sidecars(files, every)]
        if not any(job for _, job in jobs):
            raise UsageError("was not part of the audit: no file of that name was read", where=pattern, hint=ANOTHER)
        for file, job in jobs:
            if job is None:
                strange[file.uri] = None
                continue
            other = found.setdefault((job.name, job.role), job)
            if other.uri != job.uri:
                raise UsageError(f"is {job.name} of the audit, and so is {other.uri}", where=job.uri, hint="Give one.")
    return list(found.values()), list(strange)


def _listed(pattern: str) -> list[File]:
    try:
        return find(pattern, "DATASET")
    except AuditError as error:
        raise UsageError(error.what, where=error.where) from None


def _job(file: File, exclusions: Exclusions) -> CopyTask | None:
    """Return the task for a file, or None for a file that was not part of the audit and may be ignored."""
    if is_image(file.name):
        name = _image(file.uri, exclusions.folders)
        if name is None:
            return None
        return CopyTask(file.uri, name, WHOLE, "images", part_of(exclusions, name, "images"), None, 1)
    if file.name.endswith(_PACKED):
        return _packed(file, exclusions)
    name = _known(file.uri, exclusions.files)
    beside = isinstance(file, Sidecar)
    if name is None or not (beside or known(name)):
        return None
    whole = beside and exclusions.files[name] == 1
    part, rows = part_of(exclusions, name, "captions"), exclusions.files[name]
    return CopyTask(file.uri, name, WHOLE if whole else LINES, "captions", part, rows, None)


def _packed(file: File, exclusions: Exclusions) -> CopyTask:
    """Return the task for a Parquet file or a tar.

    If both a caption file and an image file have its name, its columns decide which one it is.
    """
    name = _known(file.uri, exclusions.files.keys() | exclusions.images.keys())
    if name is None:
        raise UsageError("was not part of the audit: no file of that name was read", where=file.uri, hint=ANOTHER)
    captions, images = name in exclusions.files, name in exclusions.images
    if captions and images and name not in exclusions.shared:
        captions = _holds_captions(file, exclusions)
        images = not captions
    role = "both" if captions and images else "captions" if captions else "images"
    part = part_of(exclusions, name, role)
    rows, pictures = exclusions.files[name] if captions else None, exclusions.images[name] if images else None
    return CopyTask(file.uri, name, SAMPLES if file.uri.endswith(".tar") else ROWS, role, part, rows, pictures)


def _holds_captions(file: File, exclusions: Exclusions) -> bool:
    if not file.uri.endswith(".tar"):
        with open_file(file.uri) as source:
            return exclusions.caption in pq.read_schema(source).names
    what = "a caption file and an image file of the audit both have this name, so it is unclear which one this is"
    raise UsageError(what, where=file.uri, hint="Rename one of them and audit again.")


def _known(uri: str, names: Container[str]) -> str | None:
    """Return the name of a file in the audit, the longest end of its path that is a known name, or None."""
    parts = uri.replace(os.sep, "/").split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((name for name in ends if name in names), None)


def _image(uri: str, folders: Container[str]) -> str | None:
    """Return the name of an image file in the audit, of which only the folders are known, or None."""
    folder, base = posixpath.split(uri.replace(os.sep, "/"))
    name = _known(folder, folders)
    if name is not None:
        return f"{name}/{base}"
    return base if "" in folders else None
