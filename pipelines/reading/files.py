"""Find files by path, glob, brace range or URI, and take fingerprints that tell whether a file has changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.fs as pafs
from braceexpand import braceexpand
from fsspec.utils import glob_translate

from audit.errors import AuditError, UsageError, first_line
from audit.record.filesystem import open_file, open_filesystem

_MIB = 1 << 20
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
# A range of more files than this is treated as a typo.
_LONGEST_RANGE = 10_000_000


@dataclass(frozen=True)
class File:
    """An input file.

    Attributes:
        uri: The path or URI to open.
        name: The path relative to the configured root.
        size: The size in bytes.
    """

    uri: str
    name: str
    size: int

    @property
    def stem(self) -> str:
        """Return the file name without the folder and the last suffix."""
        return os.path.splitext(os.path.basename(self.name))[0]

    def fingerprint(self) -> str:
        """Return the fingerprint of the content, as `fingerprint` does."""
        return fingerprint(self.uri)


def file_at(uri: str) -> File:
    """Return the file at a path or URI. Raises AuditError or OSError if it cannot be opened."""
    with open_file(uri) as source:
        return File(uri, os.path.basename(uri), source.size())


def find(paths: str | Sequence[str], what: str) -> list[File]:
    """Return the files of paths, globs and brace ranges, sorted by name.

    The `name` of a file is relative to the folder before the first wildcard, or to the file's own folder. With several
    paths, it is relative to the folder that they share.

    Args:
        paths: One or several paths, globs, brace ranges or folders.
        what: The configuration key of the paths, for errors.

    Raises:
        AuditError: A path matches no file, or cannot be listed.
    """
    patterns = [pattern for path in paths_of(paths) for pattern in expand(path)]
    found: dict[str, tuple[str, int]] = {}
    roots = []
    with ThreadPoolExecutor(16) as threads:
        listed = list(threads.map(_listed, patterns))
    for pattern, (root, matches) in zip(patterns, listed, strict=True):
        if not matches:
            missing = "no file matches" if is_glob(pattern) else "no such file"
            if (bucket := _missing_bucket(pattern)) is not None:
                missing = f"there is no bucket {bucket!r}"
            raise AuditError(missing, where=pattern, hint=f"Check `{what}` in the configuration.")
        roots.append(root)
        found.update({uri: (path, size) for uri, path, size in matches})
    base = os.path.commonpath(roots) if len(set(roots)) > 1 else roots[0]
    files = [File(uri, os.path.relpath(path, base), size) for uri, (path, size) in found.items()]
    return sorted(files, key=lambda file: file.name)


def neighbours(files: Sequence[File]) -> list[File]:
    """List all files in the folders of the given files, but not those in subfolders."""
    found = []
    for folder, name in {os.path.dirname(file.uri): os.path.dirname(file.name) for file in files}.items():
        filesystem, path = open_filesystem(folder)
        prefix = folder[: len(folder) - len(path)] if "://" in folder else ""
        for info in filesystem.get_file_info(pafs.FileSelector(path)):
            if info.type == pafs.FileType.File:
                found.append(File(prefix + info.path, os.path.join(name, info.base_name), info.size))
    return sorted(found, key=lambda file: file.name)


def paths_of(paths: str | Sequence[str]) -> list[str]:
    """Return one or several paths as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def is_folder(path: str) -> bool:
    """Tell whether a path is a folder, all of whose files are taken."""
    if is_glob(path):
        return False
    filesystem, place = open_filesystem(path)
    try:
        return filesystem.get_file_info(place.rstrip("/")).type == pafs.FileType.Directory
    except OSError:
        return False


def expand(pattern: str) -> list[str]:
    """Expand the braces in a pattern as bash does: `{00..12}`, `{0..100..10}` and `{a,b}`.

    Other braces are ordinary characters, and so is a backslash.

    Raises:
        UsageError: A range is longer than 10,000,000 files.
    """
    for low, high in _RANGE.findall(pattern):
        if abs(int(high) - int(low)) >= _LONGEST_RANGE:
            raise UsageError(f"{{{low}..{high}}} is more than {_LONGEST_RANGE:,} files", where=pattern)
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:  # unbalanced braces
        return [pattern]


def fingerprint(uri: str) -> str:
    """Return the sha256 of a file.

    For a file above 2 MiB, it is the sha256 of the size and the first and last MiB ("size+ends:..."): a check, not a
    proof, that the file is unchanged.
    """
    with open_file(uri) as source:
        size = source.size()
        if size <= 2 * _MIB:
            return hashlib.sha256(source.read()).hexdigest()
        digest = hashlib.sha256(str(size).encode())
        digest.update(source.read(_MIB))
        source.seek(size - _MIB)
        digest.update(source.read(_MIB))
        return f"size+ends:{digest.hexdigest()}"


def is_glob(pattern: str) -> bool:
    """Tell whether a path has wildcards."""
    return any(letter in pattern for letter in "*?[")


def _listed(pattern: str) -> tuple[str, list[tuple[str, str, int]]]:
    """Return the same as `_matches`. Raise AuditError if the files cannot be listed."""
    try:
        return _matches(pattern)
    except UnicodeDecodeError as error:
        what = f"a file name below it is not UTF-8: {error.object!r}"
        raise AuditError(what, where=pattern, hint="Rename the file.") from error
    except OSError as error:
        hint = "Check that it may be read; of s3:// the AWS_ variables of the environment: keys, region, endpoint."
        raise AuditError(f"cannot be listed: {first_line(error)}", where=pattern, hint=hint) from error


def _missing_bucket(pattern: str) -> str | None:
    """Return the bucket of a URI if it does not exist, else None."""
    if not pattern.startswith(("s3://", "gs://", "gcs://")):
        return None
    filesystem, path = open_filesystem(pattern)
    bucket = path.partition("/")[0]
    return bucket if bucket and filesystem.get_file_info(bucket).type == pafs.FileType.NotFound else None


def _matches(pattern: str) -> tuple[str, list[tuple[str, str, int]]]:
    """Return the folder that names are relative to, and (uri, path, size) per file."""
    filesystem, path = open_filesystem(pattern)
    prefix = pattern[: len(pattern) - len(path)] if "://" in pattern else ""
    if not is_glob(path):
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.Directory:
            exists = info.type == pafs.FileType.File
            return os.path.dirname(path), [(prefix + path, path, info.size)] if exists else []
        path = f"{path.rstrip('/')}/**"
    root = path[: min(path.index(letter) for letter in "*?[" if letter in path)].rpartition("/")[0]
    try:
        fits = re.compile(glob_translate(path)).match
    except ValueError:
        what = "`**` stands for whole folders: it must be alone between slashes"
        raise UsageError(what, where=pattern, hint="Write `**/*.tar`, for example.") from None
    # One recursive listing, where fsspec's own `glob` would list every folder in turn.
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    return root, [
        (prefix + info.path, info.path, info.size)
        for info in filesystem.get_file_info(selector)
        if info.type == pafs.FileType.File and fits(info.path) and not _is_hidden(info.path, root)
    ]


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in os.path.relpath(path, root).split("/"))
