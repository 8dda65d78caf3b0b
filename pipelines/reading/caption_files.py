"""Read captions from text files beside images, as kohya's trainers do: `a.png` with `a.txt` or `a.caption`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File
from pipelines.reading.folders import is_image
from pipelines.reading.slices import UNREADABLE, Malformed, Slice, chunks, lines, table_of, too_long, without_mark

SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True)
class Sidecar(File):
    """A text file with the caption of the image that lies beside it and has the same stem.

    Attributes:
        image: The file name of that image.
    """

    image: str = ""


def may_hold(file: File) -> bool:
    """Tell from its name whether a file may hold the caption of an image beside it."""
    return file.name.endswith(SUFFIXES)


def with_sidecars(files: Sequence[File], images: Iterable[File]) -> list[File]:
    """Return the files, with a `Sidecar` in place of each text file that lies beside an image with the same stem.

    Args:
        files: The caption files.
        images: The image files. If several have the same stem, the caption belongs to the first one by name.
    """
    image_of: dict[str, str] = {}
    for image in sorted(images, key=lambda image: image.uri, reverse=True):
        if is_image(image.uri):
            image_of[os.path.splitext(image.uri)[0]] = os.path.basename(image.uri)

    def told(file: File) -> File:
        image = image_of.get(os.path.splitext(file.uri)[0]) if may_hold(file) else None
        return file if image is None else Sidecar(file.uri, file.name, file.size, image)

    return [told(file) for file in files]


def columns(file: File, captions: Captions) -> list[str]:
    """Return an empty list, because text has no columns."""
    return []


def check(file: File, captions: Captions) -> None:
    """Read the beginning of a file, which fails if the file cannot be read or is in UTF-16 or UTF-32."""
    next(chunks(file), None)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return one slice of one row, because kohya's trainers read only the first line as the caption.

    The place of the slice ends with that line, unless only blank lines follow: see `has_more_lines`.
    """
    try:
        end = _end_of_caption(file)
    except UNREADABLE:
        end = file.size  # `read` fails too, and records the error
    return [Slice(file, 0, 1, (0, end))], None


def has_more_lines(part: Slice) -> bool:
    """Tell whether nonblank lines follow the caption. With `enable_wildcard`, kohya's trainers use these too."""
    return part.place[1] < part.file.size


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
    """Read the caption, if row 0 is in [start, stop).

    The arguments are those of `pipelines.reading.captions.read`. The result is a table of schema RAW and the malformed
    rows.

    Raises:
        UNREADABLE: One of these errors, if the file cannot be read.
    """
    assert isinstance(part.file, Sidecar)
    if not start < stop:
        return table_of([]), []
    _, first = next(lines(part.file), (0, b""))
    if first is None:
        return table_of([]), [too_long(0)]
    line = without_mark(first.partition(b"\r")[0]).strip()
    if not line:
        return table_of([]), [Malformed(0, "empty_line", "its first line is empty; expected a caption")]
    return table_of([(line, 0, part.file.image, None, None)]), []


def _end_of_caption(file: File) -> int:
    """Return the byte where the first line ends, or the file size if only blank lines follow.

    A lone CR ends a line too.
    """
    found = lines(file)
    size, first = next(found, (0, b""))
    rest = (first or b"").partition(b"\r")[2]
    if rest.strip() or any(line is None or line.strip() for _, line in found):
        return size - len(rest)
    return file.size
