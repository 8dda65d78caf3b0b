"""List and read training images in WebDataset tars, Parquet files with image bytes, and plain folders.

`index` finds the location of each image once; `read` and `read_each` then read images by location.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import AuditError, UsageError
from audit.images.decoding import MOST_BYTES
from audit.record.filesystem import open_file
from pipelines.reading.files import File
from pipelines.reading.folders import Folder, is_image
from pipelines.reading.slices import UNREADABLE, reason

_BUFFER = 1 << 20

# The location of each image. For an image in a tar or in a file of its own, `offset` and `size` locate its bytes. For
# an image in a Parquet file, `offset` is the row group, and `size` is the row within it.
INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def image_id(file: str, row: int) -> str:
    """Return the id of an image.

    It is a hash of the path of its file, relative to the root of `images`, and of the number of its sample in the file.
    """
    return hashlib.sha256(f"{file}\0{row}".encode()).hexdigest()[:32]


def index(file: File, column: str, most: int | None = None) -> tuple[pa.Table, str | None]:
    """List the locations of the images in a file.

    A Parquet row group that cannot be read is skipped and reported, and the next one is read.

    Args:
        file: A tar, a Parquet file or a folder.
        column: The Parquet column that holds the image bytes.
        most: The maximum number of images to list, or None for all.

    Returns:
        A table of schema INDEX, and why other images cannot be read, or None.

    Raises:
        UsageError: A Parquet file lacks the column.
    """
    if isinstance(file, Folder):
        return _folder_places(file).slice(0, most), None
    found: list[dict] = []
    problems: list[str] = []
    places = _parquet_places(file, column, problems) if file.name.endswith(".parquet") else _tar_places(file)
    try:
        for row, key, offset, size in islice(places, most):
            where = {"image_id": image_id(file.name, row), "file": file.name, "row": row, "key": key}
            found.append(where | {"uri": file.uri, "offset": offset, "size": size})
    except UNREADABLE as error:
        problems.append(reason(error))
    return pa.Table.from_pylist(found, schema=INDEX), "; ".join(problems) or None


def read(places: pa.Table, column: str) -> Iterator[bytes | None]:
    """Read images as `read_each` does, but raise the AuditError of the first image that cannot be read."""
    for found in read_each(places, column):
        if isinstance(found, AuditError):
            raise found
        yield found


def read_each(places: pa.Table, column: str) -> Iterator[bytes | AuditError | None]:
    """Read the bytes of images in the order of `places` (schema INDEX).

    Yields the bytes of each image; None if the source has no bytes for it, or too many; and an AuditError for each
    image in a file or row group that is damaged or missing. The other images are still read.

    Raises:
        AuditError: The storage does not answer, which says nothing about the images.
    """
    rows = places.to_pylist()
    while rows:
        uri = rows[0]["uri"]
        count = next((at for at, row in enumerate(rows) if row["uri"] != uri), len(rows))
        yield from _read_file(uri, rows[:count], column)
        rows = rows[count:]


def _read_file(uri: str, rows: list[dict], column: str) -> Iterator[bytes | AuditError | None]:
    done = 0
    try:
        with open_file(uri) as source:
            reader = _read_parquet(uri, source, rows, column) if uri.endswith(".parquet") else _read_bytes(source, rows)
            for found in reader:
                yield found
                done += 1
    except (AuditError, *UNREADABLE) as error:
        lost = error if isinstance(error, AuditError) else AuditError(reason(error), where=uri)
        if not isinstance(error, AuditError) and "://" in uri and not _whole(uri):
            raise AuditError(f"the storage does not answer: {reason(error)}", where=uri) from error
        yield from [lost] * (len(rows) - done)


def _read_bytes(source: pa.NativeFile, rows: list[dict]) -> Iterator[bytes | None]:
    for row in rows:
        source.seek(row["offset"])
        content = source.read(row["size"]) if row["size"] <= MOST_BYTES else b""
        yield content if len(content) == row["size"] else None


def _whole(uri: str) -> bool:
    """Tell whether the storage returns every byte of a file: then the file is damaged, and the storage is not down."""
    try:
        with open_file(uri) as source:
            while source.read(_BUFFER):
                pass
    except (AuditError, OSError):
        return False
    return True


def samples(source: pa.NativeFile) -> Iterator[tuple[int, str, tarfile.TarInfo, int]]:
    """Yield (number of its sample, key, member, byte where the member ends) for every file in a tar.

    As in WebDataset, a sample consists of consecutive members that share their name up to its first dot.

    Raises:
        tarfile.ReadError: The archive is truncated. It is raised after the last whole member.
    """
    number, last, size = -1, None, source.size()
    for member, end in _members(source):
        folder, base = os.path.split(member.name.removeprefix("./"))
        if not member.isfile() or base.startswith("."):
            continue
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"the archive ends within {member.name}")
        key = os.path.join(folder, base.partition(".")[0])
        if key != last:
            number, last = number + 1, key
        yield number, key, member, end
    if not _ends(source, size):
        raise tarfile.ReadError("the archive has no end mark: it is truncated")


def _folder_places(folder: Folder) -> pa.Table:
    columns = {
        "image_id": [image_id(image.name, 0) for image in folder.images],
        "file": [image.name for image in folder.images],
        "row": [0] * len(folder.images),
        "key": [image.stem for image in folder.images],
        "uri": [image.uri for image in folder.images],
        "offset": [0] * len(folder.images),
        "size": [image.size for image in folder.images],
    }
    return pa.table(columns, schema=INDEX)


def _tar_places(file: File) -> Iterator[tuple[int, str, int, int]]:
    """Yield (number of the sample, key, offset, size) of the first image of each sample that has one."""
    done = -1
    with open_file(file.uri) as source:
        for number, key, member, _ in samples(source):
            if number != done and is_image(member.name):
                done = number
                yield number, key, member.offset_data, member.size


def _members(source: pa.NativeFile) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield every member of a tar, and the byte where it ends."""
    buffered = io.BufferedReader(_Raw(source), _BUFFER)
    with tarfile.open(fileobj=buffered, mode="r:") as tar:
        while member := tar.next():
            yield member, tar.offset
            # Otherwise tarfile keeps the headers of all members in memory.
            tar.members = []  # type: ignore[attr-defined]


def _ends(source: pa.NativeFile, size: int) -> bool:
    """Tell whether a tar ends with an end mark, a block of 512 zero bytes."""
    source.seek(max(0, size - 512))
    return not any(source.read(512))


def _parquet_places(file: File, column: str, problems: list[str]) -> Iterator[tuple[int, str, int, int]]:
    """Yield (row, key, row group, row within it) per image, and append unreadable row groups to `problems`."""
    with open_file(file.uri) as source:
        parquet = pq.ParquetFile(source)
        names = parquet.schema_arrow.names
        if column not in names:
            raise UsageError(
                f"no column {column!r}; there is {', '.join(names)}", where=file.uri, hint="Set images.column."
            )
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            keys = [None] * rows
            if "key" in names:
                try:
                    keys = parquet.read_row_group(group, columns=["key"])["key"].cast(pa.string()).to_pylist()
                except UNREADABLE as error:
                    problems.append(f"row group {group}, {rows:,} images: {reason(error)}")
                    keys = []
            for row, key in enumerate(keys):
                yield first + row, key if key is not None else str(first + row), group, row
            first += rows


def _read_parquet(
    uri: str, source: pa.NativeFile, rows: list[dict], column: str
) -> Iterator[bytes | AuditError | None]:
    parquet = pq.ParquetFile(source)
    for group, same in groupby(rows, key=itemgetter("offset")):
        inside = [row["size"] for row in same]
        try:
            values = _values(parquet, group, column, inside)
        except UNREADABLE as error:
            if "://" in uri and not _whole(uri):
                raise
            yield from [AuditError(f"row group {group}: {reason(error)}", where=uri)] * len(inside)
            continue
        for value in values:
            # Hugging Face datasets store images as {bytes, path}.
            yield value.get("bytes") if isinstance(value, dict) else value


def _values(parquet: pq.ParquetFile, group: int, column: str, inside: list[int]) -> list:
    return parquet.read_row_group(group, columns=[column])[column].take(pa.array(inside, pa.int64())).to_pylist()


class _Raw(io.RawIOBase):
    """Wrap a pyarrow file as a raw Python file, so that it can be buffered."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._source.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
