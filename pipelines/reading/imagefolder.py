"""Hugging Face imagefolder: metadata.jsonl, .csv or .parquet whose column `file_name` names the image of each row."""

from __future__ import annotations

import os

from pipelines.configuration.config import Captions
from pipelines.reading.files import File

FILE_NAME = "file_name"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def is_metadata(file: File) -> bool:
    """Whether a file is the metadata of an imagefolder, by its name."""
    return os.path.basename(file.name) in METADATA


def names_files(file: File, captions: Captions) -> bool:
    """Whether the keys of a file of captions are paths of images, relative to its own folder."""
    return captions.key == FILE_NAME or (captions.key is None and is_metadata(file))


def key_column(file: File, captions: Captions) -> str:
    """The column of the sample key."""
    return captions.key or (FILE_NAME if is_metadata(file) else "key")
