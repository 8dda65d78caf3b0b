"""Choose the files that hold the captions of a data set."""

from __future__ import annotations

import os

from pipelines.configuration.config import Captions, Images
from pipelines.reading import caption_files
from pipelines.reading import captions as captions_of
from pipelines.reading.files import File, find, is_folder, paths_of
from pipelines.reading.imagefolder import is_metadata


def choose_caption_files(captions: Captions, images: Images | None) -> list[File]:
    """Find the caption files. In a folder, images and files of unknown formats are left out.

    Raises AuditError or UsageError that names what is missing.
    """
    found = find(captions.path, "captions")
    files = _among(found) if any(map(is_folder, paths_of(captions.path))) else found
    if caption_files.may_hold(files):
        files = caption_files.with_sidecars(files, [*found, *(find(images.path, "images") if images else [])])
    return files


def _among(files: list[File]) -> list[File]:
    """Return the caption files among the files of a folder.

    The metadata of an imagefolder stands for all of its files. If an img2dataset shard has a tar and a Parquet file,
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
