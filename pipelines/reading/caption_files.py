"""Captions in a text file beside each image, as kohya's trainers have them: `a.png` with `a.txt` or `a.caption`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.configuration.config import Captions
from pipelines.reading.files import File
from pipelines.reading.folders import is_image
from pipelines.reading.slices import UNREADABLE, Malformed, Slice, chunks, lines, table_of, too_long, without_mark

SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True)
class Sidecar(File):
    """A text file with the caption of the image of the same stem beside it; `image` is that image's file name."""

    image: str = ""


def may_hold(file: File) -> bool:
    """Return whether a file may be a caption beside an image, by its name."""
    return file.name.endswith(SUFFIXES)


def with_sidecars(files: Sequence[File], images: Iterable[File]) -> list[File]:
    """Return the files, with a `Sidecar` in place of each text file that has an image of the same stem beside it.

    Args:
        files: The files of captions.
        images: Image files. Of several with one stem the first by name is the image of the caption.
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
    """Return no names: text has no columns."""
    return []


def check(file: File, captions: Captions) -> None:
    next(chunks(file), None)


def plan(file: File, captions: Captions) -> tuple[list[Slice], str | None]:
    """Return one slice of one row: the first line is the caption, as for kohya's trainers.

    Its place ends with that line, unless only blank lines follow: see `has_more_lines`.
    """
    try:
        end = _end_of_caption(file)
    except UNREADABLE:
        end = file.size  # `read` fails too, and records the error
    return [Slice(file, 0, 1, (0, end))], None


def has_more_lines(part: Slice) -> bool:
    """Return whether nonblank lines follow the caption. kohya's trainers use them with `enable_wildcard`."""
    return part.place[1] < part.file.size


def read(part: Slice, start: int, stop: int, captions: Captions) -> tuple[pa.Table, list[Malformed]]:
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
    """Return the byte where the first line ends, or the size if only blank lines follow. A lone CR ends a line too."""
    found = lines(file)
    size, first = next(found, (0, b""))
    rest = (first or b"").partition(b"\r")[2]
    if rest.strip() or any(line is None or line.strip() for _, line in found):
        return size - len(rest)
    return file.size
