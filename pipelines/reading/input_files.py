"""Find the input files that a configuration names, and take their fingerprints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.configuration.config import Config
from pipelines.reading import caption_files, precomputed
from pipelines.reading import captions as captions_of
from pipelines.reading.files import File, find, is_folder, paths_of
from pipelines.reading.folders import gather
from pipelines.reading.imagefolder import is_metadata


@dataclass(frozen=True)
class Inputs:
    """The files of a run."""

    captions: list[File]
    images: list[File]


def find_inputs(config: Config) -> Inputs:
    """Finds the files and looks at their columns. Raises AuditError or UsageError that names what is missing."""
    return Inputs(find_captions(config), find_images(config))


def find_captions(config: Config) -> list[File]:
    """Find the files of captions. Of a folder, images and files of no known format are left out.

    Raises AuditError or UsageError that names what is missing.
    """
    found = find(config.captions.path, "captions")
    captions = _among(found) if any(map(is_folder, paths_of(config.captions.path))) else found
    if caption_files.may_hold(captions):
        images = find(config.images.path, "images") if config.images else []
        captions = caption_files.with_sidecars(captions, [*found, *images])
    captions_of.check(captions, config.captions)
    return captions


def _among(files: list[File]) -> list[File]:
    """The captions among the files of a folder.

    The metadata of an imagefolder stands for all of its files. Of the tar and the Parquet file of an img2dataset shard
    the Parquet file is read: it also has the rows that were not downloaded.
    """
    metadata = [file for file in files if is_metadata(file)]
    stems = {os.path.splitext(file.uri)[0] for file in files if file.name.endswith(".parquet")}
    captions = metadata or [
        file
        for file in files
        if not (file.name.endswith(".tar") and os.path.splitext(file.uri)[0] in stems)
        and (captions_of.known(file.name) or file.name.endswith(caption_files.SUFFIXES))
    ]
    return captions or files


def find_images(config: Config) -> list[File]:
    return gather(find(config.images.path, "images")) if config.images else []


def fingerprints(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What the manifest keeps of each input file."""
    screen = config.calibration.screen
    names = [config.calibration.captions, *(precomputed.files(screen) if screen else [])]
    nulls = [File(name, name, 0) for name in names]
    found = [("captions", inputs.captions), ("images", inputs.images), ("calibration", nulls)]
    return [item for kind, files in found for item in prints(kind, files)]


def prints(kind: str, files: Sequence[File]) -> list[dict[str, Any]]:
    """The fingerprint of each of the files of a kind."""
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda file: file.fingerprint(), files))
    return [
        {"kind": kind, "rows": None, "file": file.uri, "name": file.name, "sha256": sha256}
        for file, sha256 in zip(files, found, strict=True)
    ]
