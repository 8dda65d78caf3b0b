"""Plain folders of image files, next to tars and Parquet files."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.reading.files import File
from pipelines.reading.imagefolder import is_metadata

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif"}


@dataclass(frozen=True)
class Folder(File):
    """The image files of one folder; each counts as a file with one sample, whose key is its name up to the suffix."""

    images: tuple[File, ...] = ()

    @property
    def stem(self) -> str:
        return os.path.basename(self.uri)

    def fingerprint(self) -> str:
        """Of names and sizes ("names+sizes:..."): to open every image once more would cost as much as to embed them."""
        lines = "".join(f"{os.path.basename(image.name)}\0{image.size}\n" for image in self.images)
        return f"names+sizes:{hashlib.sha256(lines.encode()).hexdigest()}"


def gather(files: Sequence[File]) -> list[File]:
    """Tars and Parquet files as they are, and image files by folder; what lies beside them is left out."""
    tars = {os.path.splitext(file.uri)[0] for file in files if file.name.endswith(".tar")}
    # The Parquet file of an img2dataset shard has the captions of the tar beside it, and no images.
    files = [file for file in files if not (file.name.endswith(".parquet") and os.path.splitext(file.uri)[0] in tars)]
    folders: dict[str, list[File]] = defaultdict(list)
    for file in files:
        if is_image(file.name):
            folders[os.path.dirname(file.uri)].append(file)
    found = [file for file in files if file.name.endswith((".tar", ".parquet")) and not is_metadata(file)]
    if not folders:
        return found or list(files)
    for uri, images in folders.items():
        name, size = os.path.dirname(images[0].name) or ".", sum(image.size for image in images)
        found.append(Folder(uri, name, size, tuple(images)))
    return sorted(found, key=lambda file: file.name)


def is_image(name: str) -> bool:
    """Whether a member of a tar or a file is taken for an image, by its name; hidden ones are none."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in SUFFIXES and not base.startswith(".")
