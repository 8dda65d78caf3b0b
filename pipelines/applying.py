"""`crossaudit apply`: clean copies of the data set that was audited, whose counts are proven."""

from __future__ import annotations

import os
import posixpath
import tarfile
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from audit.errors import AuditError, UsageError
from pipelines import exclusions as exclusions_of
from pipelines.exclusions import Exclusions
from pipelines.reading.files import find, open_file, open_filesystem
from pipelines.writing import parquet, tar
from pipelines.writing.counts import Counts

_AUDITED = "Give the very files that the run read, or audit these."


@dataclass(frozen=True)
class Job:
    """One file to copy; `name` is what the audit calls it."""

    uri: str
    name: str
    target: str

    @property
    def is_tar(self) -> bool:
        return self.uri.endswith(".tar")

    @property
    def unit(self) -> str:
        return "samples" if self.is_tar else "rows"


def apply(uri: str, dataset: Sequence[str], out: str, say: Callable[[str], None]) -> Counts:
    """Writes a copy of each file without the rows that the exclusions drop, below `out`; returns the sums.

    All is checked that can be before anything is written. Raises UsageError if a file was not audited or its copy is
    there already, AuditError if it is not the file that was audited, or if the counts do not close; such a copy is
    not kept.
    """
    exclusions = exclusions_of.read(uri)
    filesystem, root = open_filesystem(out)
    jobs = _jobs(exclusions, dataset, root)
    _refuse(jobs, exclusions, filesystem)
    total = Counts()
    for job in jobs:
        with _naming(job.uri):
            counts = _clean(job, exclusions, filesystem)
        say(f"{job.name}: {_shown(counts, job.unit)}")
        total += counts
    rows = {job.name for job in jobs if not job.is_tar}
    elsewhere = [len(part) for name, part in exclusions.rows_of.items() if name not in rows]
    say(f"{len(jobs):,} files: {_shown(total, 'rows and samples')}; every exclusion of these files was met once")
    if elsewhere:
        say(f"{sum(elsewhere):,} exclusions are of rows in {len(elsewhere):,} caption files that were not given")
    return total


def _shown(counts: Counts, unit: str) -> str:
    return f"{counts.rows_in:,} {unit} in, {counts.dropped:,} dropped, {counts.rows_out:,} out"


def _jobs(exclusions: Exclusions, dataset: Sequence[str], root: str) -> list[Job]:
    jobs: dict[str, Job] = {}
    for uri in _files(dataset):
        known: Collection[str] = exclusions.images if uri.endswith(".tar") else exclusions.files
        name = _audited(uri, known)
        job = Job(uri, name, posixpath.join(root, name))
        if jobs.setdefault(name, job) != job:
            raise UsageError(f"is {name} of the audit, and so is {jobs[name].uri}", where=uri, do="Give one of them.")
    return [jobs[name] for name in sorted(jobs)]


def _files(dataset: Sequence[str]) -> list[str]:
    """The Parquet files and tars of paths, folders and globs, each once."""
    found: dict[str, None] = {}
    for pattern in dataset:
        try:
            files = [file.uri for file in find(pattern, "DATASET") if file.uri.endswith((".parquet", ".tar"))]
        except AuditError as error:
            raise UsageError(error.what, where=error.where) from None
        if not files:
            raise UsageError("neither a Parquet file nor a tar", where=pattern, do=_AUDITED)
        found.update(dict.fromkeys(files))
    return list(found)


def _audited(uri: str, known: Collection[str]) -> str:
    """The name under which the audit knows a file: the longest end of its path that is one."""
    parts = uri.replace(os.sep, "/").split("/")
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in known:
            return name
    raise UsageError("was not part of the audit: no file of that name was read", where=uri, do=_AUDITED)


def _refuse(jobs: Sequence[Job], exclusions: Exclusions, filesystem: pafs.FileSystem) -> None:
    """Raises what can be known before anything is written."""
    for job in jobs:
        if filesystem.get_file_info(job.target).type != pafs.FileType.NotFound:
            raise UsageError("is there already", where=job.target, do="Give another --out, or move it away.")
        if job.is_tar:
            if exclusions.rows_of and not exclusions.samples_of:
                raise UsageError(
                    "no exclusion names a sample of a tar: the captions of the run have no images of their own",
                    where=job.uri,
                    do="Set images.pair and audit again, or apply to the captions only.",
                )
            continue
        audited = exclusions.files[job.name]
        with _naming(job.uri), open_file(job.uri) as source:
            rows = pq.read_metadata(source).num_rows
        if rows != audited:
            was = "was not read whole" if audited is None else f"had {audited:,}"
            raise AuditError(f"has {rows:,} rows; when audited it {was}", where=job.uri, do=_AUDITED)


def _clean(job: Job, exclusions: Exclusions, filesystem: pafs.FileSystem) -> Counts:
    """One copy, under a temporary name, counted again as it was written, and then renamed."""
    folder, base = posixpath.split(job.target)
    filesystem.create_dir(folder, recursive=True)
    temporary = posixpath.join(folder, f".{base}.{uuid.uuid4().hex}.tmp")
    part = (exclusions.samples_of if job.is_tar else exclusions.rows_of).get(job.name)
    try:
        with open_file(job.uri) as source, filesystem.open_output_stream(temporary) as sink:
            if job.is_tar:
                counts = tar.clean(source, sink, _samples(part), exclusions.images[job.name])
            else:
                counts = parquet.clean(source, sink, _rows(part), exclusions.caption)
        with filesystem.open_input_file(temporary) as written:
            counts = replace(counts, rows_out=tar.count(written) if job.is_tar else pq.read_metadata(written).num_rows)
        _prove(counts, part, job.unit)
        filesystem.move(temporary, job.target)
    finally:
        if filesystem.get_file_info(temporary).type != pafs.FileType.NotFound:
            filesystem.delete_file(temporary)
    return counts


def _rows(part: pa.Table | None) -> pa.Table:
    layout = pa.schema([("row", pa.int64()), ("caption_id", pa.string()), ("action", pa.string())])
    return layout.empty_table() if part is None else part.select(layout.names)


def _samples(part: pa.Table | None) -> dict[int, tuple[str | None, str]]:
    if part is None:
        return {}
    return {
        row: (key, action)
        for row, key, action in zip(*(part[n].to_pylist() for n in ("row", "key", "action")), strict=True)
    }


def _prove(counts: Counts, part: pa.Table | None, unit: str) -> None:
    wanted = 0 if part is None else len(part)
    drops = 0 if part is None else part["action"].to_pylist().count("drop")
    if counts.met != wanted:
        raise AuditError(
            f"{counts.met:,} of {wanted:,} exclusions were met: it is shorter than when audited", do=_AUDITED
        )
    if counts.dropped != drops or counts.rows_in != counts.dropped + counts.rows_out:
        raise AuditError(f"the counts do not close: {_shown(counts, unit)}; {drops:,} are to be dropped")


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Errors that are about one file say which."""
    try:
        yield
    except AuditError as error:
        if error.where is not None:
            raise
        raise type(error)(error.what, where=uri, do=error.do) from error
    except (pa.ArrowException, tarfile.TarError, OSError, EOFError) as error:
        raise AuditError(f"cannot be copied: {' '.join(str(error).split())}", where=uri) from error
