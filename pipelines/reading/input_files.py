"""Find the input files that a configuration names, and compute their fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from audit.record.manifest_entries import InputFile
from pipelines.configuration.config import Config
from pipelines.reading import captions as captions_of
from pipelines.reading import precomputed
from pipelines.reading.caption_choice import choose_caption_files
from pipelines.reading.files import File, find
from pipelines.reading.folders import gather

Kind = Literal["captions", "images", "calibration"]


@dataclass(frozen=True)
class Inputs:
    """The input files of a run."""

    captions: list[File]
    images: list[File]


def find_inputs(config: Config) -> Inputs:
    """Find the input files and check their columns. Raises AuditError or UsageError that names what is missing."""
    return Inputs(find_captions(config), find_images(config))


def find_captions(config: Config) -> list[File]:
    """Find the caption files and check their columns. Raises AuditError or UsageError that names what is missing."""
    captions = choose_caption_files(config.captions, config.images)
    captions_of.check(captions, config.captions)
    return captions


def find_images(config: Config) -> list[File]:
    """Find the image files and folders. Returns an empty list if no images are configured."""
    return gather(find(config.images.path, "images")) if config.images else []


def fingerprints(config: Config, inputs: Inputs) -> list[InputFile]:
    """Return the entry of each input file in the manifest."""
    screen = config.calibration.screen
    names = [config.calibration.captions, *(precomputed.files(screen) if screen else [])]
    control = [File(name, name, 0) for name in names]
    if config.calibration.pairs is not None:
        control += find(config.calibration.pairs, "calibration.pairs")
    found: list[tuple[Kind, Sequence[File]]] = [
        ("captions", inputs.captions),
        ("images", inputs.images),
        ("calibration", control),
    ]
    return [item for kind, files in found for item in prints(kind, files)]


def prints(kind: Kind, files: Sequence[File]) -> list[InputFile]:
    """Return the manifest entries, with fingerprints, of files of one kind (captions, images or calibration)."""
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda file: file.fingerprint(), files))
    return [
        InputFile(kind=kind, rows=None, file=file.uri, name=file.name, sha256=sha256)
        for file, sha256 in zip(files, found, strict=True)
    ]
