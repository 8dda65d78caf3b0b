"""Group plain image files by folder, next to tars and Parquet files."""

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
    """The image files of one folder.

    Each image file counts as a file with one sample. Its key is the file name without the suffix.
    """

    images: tuple[File, ...] = ()

    @property
    def stem(self) -> str:
        """Return the name of the folder."""
        return os.path.basename(self.uri)

    def fingerprint(self) -> str:
        """Return the sha256 of the names and sizes of the images ("names+sizes:...").

        Reading the content of every image once more would cost as much as embedding them.
        """
        lines = "".join(f"{os.path.basename(image.name)}\0{image.size}\n" for image in self.images)
        return f"names+sizes:{hashlib.sha256(lines.encode()).hexdigest()}"


def gather(files: Sequence[File]) -> list[File]:
    """Return tars and Parquet files as they are, and one `Folder` per folder with image files.

    Other files are skipped, unless there is nothing else.
    """
    tars = {os.path.splitext(file.uri)[0] for file in files if file.name.endswith(".tar")}
    # The Parquet file of an img2dataset shard has the captions of the tar beside it but no images.
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
    """Tell from the name of a file or tar member whether it counts as an image. Hidden files do not."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in SUFFIXES and not base.startswith(".")
