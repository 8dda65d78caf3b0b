"""Publish a run as a folder that any web server can serve as it is."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from pyarrow import fs

from audit.errors import AuditError, UsageError, first_line
from audit.record.filesystem import open_filesystem, write_file
from reports.exports.formats import FORMATS
from reports.record.model import Record

FILES = {"index.html": "html", "record.json": "json", "cases.csv": "csv"}
CHECKSUMS = "SHA256SUMS"  # as `sha256sum --check` reads it


def publish(record: Record, to: str) -> list[str]:
    """Write the report, the record, the captions and their checksums into a folder.

    Args:
        record: The record of the run. The pictures in it are published as they are: blurred or not, or none.
        to: The folder or URI: new, empty, or with nothing but what `publish` wrote before.

    Returns:
        The names of the files.

    Raises:
        UsageError: The folder has files that `publish` did not write, or that were changed since.
        AuditError: A file cannot be read or written.
    """
    filesystem, folder = open_filesystem(to)
    folder = folder.rstrip("/")
    try:
        _refuse_foreign(filesystem, folder, to)
        contents = {name: FORMATS[format_](record) for name, format_ in FILES.items()}
        contents[CHECKSUMS] = "".join(f"{_sha256(data)}  {name}\n" for name, data in contents.items()).encode()
        for name, data in contents.items():
            write_file(filesystem, f"{folder}/{name}", data)
    except (OSError, pa.ArrowException) as error:
        raise AuditError(f"cannot be written: {first_line(error)}", where=to, hint="Give another --to.") from error
    return list(contents)


def _refuse_foreign(filesystem: fs.FileSystem, folder: str, to: str) -> None:
    """Raise UsageError unless a folder holds only files whose checksums an earlier `publish` has written."""
    hint = "Give a new or empty folder."
    if filesystem.get_file_info(folder).type == fs.FileType.File:
        raise UsageError("is a file, not a folder", where=to, hint=hint)
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    names = {info.path.removeprefix(folder).lstrip("/") for info in found}
    known = _checksums(filesystem, folder) if CHECKSUMS in names else {}
    for name in sorted(names - {CHECKSUMS}):
        if name not in FILES or name not in known:
            raise UsageError(f"has a file that `crossaudit publish` did not write: {name}", where=to, hint=hint)
        if _sha256(_read(filesystem, f"{folder}/{name}")) != known[name]:
            raise UsageError(f"has a file that was changed after it was published: {name}", where=to, hint=hint)


def _checksums(filesystem: fs.FileSystem, folder: str) -> dict[str, str]:
    lines = _read(filesystem, f"{folder}/{CHECKSUMS}").decode(errors="replace").splitlines()
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}


def _read(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
