"""Count rows and images without reading them all.

The counts come from Parquet footers and from the first rows of other files.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.record.filesystem import open_file
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading import images as images_of
from pipelines.reading import parquet, tars
from pipelines.reading.files import File
from pipelines.reading.folders import Folder
from pipelines.reading.sampling import evenly_spaced
from pipelines.reading.slices import COMPRESSED, HEAD, UNREADABLE, Slice

T = TypeVar("T")

# At most LOOKED_AT files are sampled of each kind that does not store its row count, evenly spaced in the list. Of a
# sampled file of lines, LOOKED_BYTES bytes are read.
LOOKED_AT, LOOKED_BYTES = 8, 1 << 20
# A footer is small, but its latency is high.
_THREADS = 64


@dataclass(frozen=True)
class Count:
    """The number of rows in files.

    Attributes:
        files: Number of files.
        rows: Number of rows.
        length: Mean length of the text in a row, in bytes; 0 for images.
        estimated: Number of files whose rows are estimated.
        looked: Number of files that were sampled for the estimate.
        unreadable: Number of opened files that could not be read. They count as empty.
    """

    files: int
    rows: int
    length: float = 0.0
    estimated: int = 0
    looked: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class _Head:
    """The first rows of a file.

    Attributes:
        rows: Number of rows.
        text: Bytes of text in them.
        part: Fraction of the file that they take up; 1 for the whole file.
    """

    rows: int
    text: int
    part: float


def count_captions(files: Sequence[File], options: Captions) -> Count:
    """Count the input rows, and measure the mean length of their captions in bytes."""

    def footer(file: File) -> _Head:
        with open_file(file.uri) as source:
            metadata = pq.read_metadata(source)
        columns = [
            metadata.row_group(group).column(number)
            for group in range(metadata.num_row_groups)
            for number in range(metadata.num_columns)
        ]
        own = (column for column in columns if column.path_in_schema.split(".")[0] == options.caption)
        return _Head(metadata.num_rows, sum(column.total_uncompressed_size for column in own), 1.0)

    def look(file: File) -> _Head:
        return (_head_of_tar if captions_of.module_of(file) is tars else _head_of_lines)(file, options)

    return _count(files, lambda file: captions_of.module_of(file) is parquet, footer, look)


def count_images(files: Sequence[File], column: str) -> Count:
    """Count the training images, readable or not. A folder of image files is one of `files`."""

    def known(file: File) -> _Head:
        if isinstance(file, Folder):
            return _Head(len(file.images), 0, 1.0)
        with open_file(file.uri) as source:
            return _Head(pq.read_metadata(source).num_rows, 0, 1.0)

    def look(file: File) -> _Head:
        places, _ = images_of.index(file, column, HEAD)
        if len(places) < HEAD:
            return _Head(len(places), 0, 1.0)
        [last] = places.slice(HEAD - 1).to_pylist()
        return _Head(HEAD, 0, (last["offset"] + last["size"]) / file.size)

    return _count(files, lambda file: isinstance(file, Folder) or file.name.endswith(".parquet"), known, look)


def _count(
    files: Sequence[File], says: Callable[[File], bool], known: Callable[[File], _Head], look: Callable[[File], _Head]
) -> Count:
    """Add up the rows of files that store their row count, and estimate the others from a few files of each kind.

    Args:
        files: The files.
        says: Tells whether a file stores its row count.
        known: Reads the row count of such a file.
        look: Reads the first rows of another file.
    """
    kinds: dict[str, list[File]] = defaultdict(list)
    for file in files:
        kinds["" if says(file) else _suffix(file.name)].append(file)
    rows = text = 0.0
    estimated = looked = unreadable = 0
    for suffix, alike in kinds.items():
        chosen = evenly_spaced(alike, LOOKED_AT) if suffix else alike
        heads = _threaded(known if not suffix else look, chosen)
        found = [(file, head) for file, head in zip(chosen, heads, strict=True) if head is not None]
        unreadable += len(chosen) - len(found)
        seen = sum(head.part * file.size for file, head in found)
        all_seen = not suffix or (len(chosen) == len(alike) and all(head.part == 1 for _, head in found))
        if not all_seen:
            estimated, looked = estimated + len(alike), looked + len(chosen)
        more = 1.0 if all_seen or not seen else sum(file.size for file in alike) / seen
        rows += more * sum(head.rows for _, head in found)
        text += more * sum(head.text for _, head in found)
    return Count(len(files), round(rows), text / rows if rows else 0.0, estimated, looked, unreadable)


def _threaded(work: Callable[[File], T], files: Iterable[File]) -> list[T | None]:
    """Call `work` with each file, in threads. The result is None for a file that cannot be read."""

    def tried(file: File) -> T | None:
        try:
            return work(file)
        except UNREADABLE:
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(tried, files))


def _head_of_tar(file: File, options: Captions) -> _Head:
    head = tars.beginning(file, HEAD)
    return _Head(head.rows, _text(head, options), 1.0 if head.rows < HEAD else head.place[1] / file.size)


def _head_of_lines(file: File, options: Captions) -> _Head:
    """Read the first bytes of a file as a truncated file, whose whole rows its format can count."""
    with open_file(file.uri) as source:
        content = source.read(LOOKED_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, os.path.basename(file.name))
        path.write_bytes(content)
        slices, _ = captions_of.plan(File(str(path), file.name, len(content)), options)
        text = sum(_text(part, options) for part in slices)
    return _Head(sum(part.rows for part in slices), text, len(content) / max(1, file.size))


def _text(part: Slice, options: Captions) -> int:
    """Return the number of bytes in the captions of a slice."""
    table, _ = captions_of.read(part, 0, part.rows, options)
    return pc.sum(pc.binary_length(table["caption"])).as_py() or 0


def _suffix(name: str) -> str:
    """Return the suffix that names the format of a file; for a compressed file, its last two suffixes."""
    stem, last = os.path.splitext(name)
    return os.path.splitext(stem)[1] + last if last in COMPRESSED else last
