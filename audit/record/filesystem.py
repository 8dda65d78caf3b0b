"""Open any file system by path or URI, and write files atomically."""

from __future__ import annotations

import errno
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from audit.errors import AuditError, UsageError, first_line

# On these a file becomes visible when it is complete; elsewhere a rename makes it visible.
OBJECT_STORES = ("s3", "gcs", "abfs")
# The kind of error for a full disk. No row caused it, so nothing is retried or split.
DISK_FULL = "disk_full"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """Open the file system of a local path or a URI.

    Args:
        uri: A path, or a URI with a scheme that pyarrow or fsspec knows (s3://, gs://, file://, memory://, ...).

    Returns:
        The file system, and the path in it.

    Raises:
        UsageError: The path is empty or contains a null character.
        AuditError: No file system can be opened for the URI.
    """
    uri = str(uri)
    if not uri.strip() or "\0" in uri:
        raise UsageError(f"{uri!r} is not a path", hint="Give the path of a folder or a file, or a URI.")
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    # Writing a small file to S3 is then one request, not three.
    option = f"{'&' if '?' in uri else '?'}allow_delayed_open=true" if uri.startswith("s3://") else ""
    try:
        return pafs.FileSystem.from_uri(uri + option)
    except (pa.ArrowException, OSError, ValueError) as unknown:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            hint = "Give a path, or a URI of a known scheme: s3://, gs://, file:// and others."
            raise AuditError(f"cannot be opened: {unknown}; {error}", where=uri, hint=hint) from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def open_file(uri: str) -> pa.NativeFile:
    """Open a seekable file for reading. Raise AuditError if it does not exist."""
    filesystem, path = open_filesystem(uri)
    try:
        return filesystem.open_input_file(path)
    except FileNotFoundError:
        raise AuditError("no such file", where=uri, hint="Check the path in the configuration.") from None


def write_file(filesystem: pafs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Write a file that appears either complete or not at all.

    Args:
        filesystem: Where to write.
        path: The path in it.
        content: The bytes to write.

    Raises:
        AuditError: The disk is full.
    """

    def write() -> None:
        with writing(filesystem, path) as sink:
            sink.write(content)

    if filesystem.type_name not in OBJECT_STORES:
        return write()
    with ThreadPoolExecutor(1) as thread:  # an interrupt in this thread would close, and so publish, a partial file
        thread.submit(write).result()


def write_out(content: bytes, out: str) -> None:
    """Write the file or URI that a command was given as --out. Raises AuditError if it cannot be written."""
    filesystem, path = open_filesystem(out)
    try:
        write_file(filesystem, path, content)
    except OSError as error:
        raise AuditError(f"cannot be written: {first_line(error)}", where=out, hint="Choose another --out.") from error


@contextmanager
def writing(
    filesystem: pafs.FileSystem, path: str, check: Callable[[str], None] | None = None
) -> Iterator[pa.NativeFile]:
    """Open a file for writing that appears at `path` if the context ends without an error.

    The file is written next to its destination under a temporary name, synced and renamed. An object store needs none
    of this: an unfinished put is not visible, and a rename would be a copy.

    Args:
        filesystem: Where to write.
        path: The path in it. Its folder is created if it does not exist.
        check: Called with the path of the complete file before it is renamed; if it raises, the file is discarded.

    Raises:
        AuditError: The disk is full.
    """
    if filesystem.type_name in OBJECT_STORES and check is None:
        with filesystem.open_output_stream(path) as sink:
            yield sink
        return
    folder, name = posixpath.split(path)
    temporary = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        filesystem.create_dir(folder, recursive=True)
        try:
            with filesystem.open_output_stream(temporary) as sink:
                yield sink
            if isinstance(filesystem, pafs.LocalFileSystem):
                _sync(temporary)
            if check is not None:
                check(temporary)
            filesystem.move(temporary, path)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(temporary)
            raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        hint = "Free some space, then run the same command again to resume."
        what = f"there is no room to write it: {os.strerror(error.errno)}"
        raise AuditError(what, where=path, hint=hint, kind=DISK_FULL) from error


def write_local(path: str | Path, content: bytes) -> None:
    """Write a local file that appears either complete or not at all."""
    write_file(pafs.LocalFileSystem(), os.path.abspath(path), content)


def _sync(path: str) -> None:
    """Force a file to disk, because a rename can reach the disk before the file's content does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
