"""Recognise the metadata of a Hugging Face imagefolder.

It is a metadata.jsonl, metadata.csv or metadata.parquet, whose column `file_name` names the image of each row.
"""

from __future__ import annotations

import os

from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File

FILE_NAME = "file_name"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def is_metadata(file: File) -> bool:
    """Tell from the name of a file whether it is the metadata of an imagefolder."""
    return os.path.basename(file.name) in METADATA


def names_files(file: File, captions: Captions) -> bool:
    """Tell whether the keys in a caption file are paths of images, relative to the folder of the caption file."""
    return captions.key == FILE_NAME or (captions.key is None and is_metadata(file))


def key_column(file: File, captions: Captions) -> str:
    """Return the name of the column that holds the sample key."""
    return captions.key or (FILE_NAME if is_metadata(file) else "key")
