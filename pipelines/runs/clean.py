"""Write clean copies of an audited dataset and verify their row counts."""

from __future__ import annotations

import os
import posixpath
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from audit.errors import AuditError, UsageError
from audit.record.filesystem import open_file, open_filesystem, writing
from pipelines.configuration.inputs import Captions
from pipelines.reading.files import File
from pipelines.writing import exclusions as exclusions_of
from pipelines.writing import parquet, tar, text
from pipelines.writing.counts import Counts
from pipelines.writing.exclusions import Exclusions
from pipelines.writing.jobs import LINES, ROWS, SAMPLES, WHOLE, CopyTask, find_jobs

_AUDITED = text.ANOTHER


def write_clean_copies(uri: str, dataset: Sequence[str], out: str, say: Callable[[str], None]) -> Counts:
    """Write a copy of each dataset file without the rows that the exclusions drop.

    Checks as much as possible before it writes anything. Does not keep a copy whose counts are wrong.

    Args:
        uri: The exclusions, as `crossaudit exclusions` wrote them.
        dataset: The files, folders or globs to copy.
        out: The folder or URI for the copies.
        say: Called with each line of the summary.

    Returns:
        The counts summed over all files.

    Raises:
        UsageError: A file was not audited, or its copy already exists.
        AuditError: A file has changed since the audit, or the counts of a copy are inconsistent.
    """
    exclusions = exclusions_of.read(uri)
    filesystem, root = open_filesystem(out)
    scheme = out[: len(out) - len(root)] if "://" in out else ""
    options = Captions(path=uri, caption=exclusions.caption or "caption", delimiter=exclusions.delimiter)
    jobs, strange = find_jobs(exclusions, dataset)
    jobs = _placed(jobs, root)
    _refuse(jobs, exclusions, filesystem, options)
    total, of_folder = Counts(), dict[str, Counts]()
    for job in jobs:
        with _naming(job.uri):
            counts = _clean(job, filesystem, options, scheme)
        if job.kind == WHOLE:
            folder = posixpath.dirname(job.name) or "."
            of_folder[folder] = of_folder.get(folder, Counts()) + counts
        else:
            say(f"{job.name}: {_shown(counts, job.unit)}")
        total += counts
    for folder, counts in sorted(of_folder.items()):
        say(f"{folder}: {_shown(counts, 'files')}")
    say(f"{len(jobs):,} files: {_shown(total, 'rows and samples')}; every exclusion for these files was applied once")
    given = {job.name for job in jobs if job.role != "images"}
    elsewhere = [len(part) for name, part in exclusions.rows_of.items() if name not in given]
    if elsewhere:
        say(f"{sum(elsewhere):,} exclusions refer to rows in {len(elsewhere):,} caption files that were not given")
    if strange:
        say(f"{len(strange):,} files were not part of the audit and are not copied, such as {strange[0]}")
    return total


def _shown(counts: Counts, unit: str) -> str:
    return f"{counts.rows_in:,} {unit} in, {counts.dropped:,} dropped, {counts.rows_out:,} out"


def _placed(jobs: list[CopyTask], root: str) -> list[CopyTask]:
    """Return the jobs with their targets set. The files keep their relative paths."""
    common = os.path.commonprefix([job.base for job in jobs]).rpartition("/")[0]
    placed = [
        replace(job, target=posixpath.join(root, (job.base + job.name)[len(common) :].lstrip("/"))) for job in jobs
    ]
    return sorted(placed, key=lambda job: job.target)


def _refuse(jobs: Sequence[CopyTask], exclusions: Exclusions, filesystem: pafs.FileSystem, options: Captions) -> None:
    """Raise an error for any problem that can be found before anything is written."""
    for info in filesystem.get_file_info([job.target for job in jobs]):
        if info.type != pafs.FileType.NotFound:
            raise UsageError("already exists", where=info.path, hint="Choose another --out, or move the file away.")
    _refuse_images(jobs, exclusions)
    for job in jobs:
        if job.kind in (SAMPLES, WHOLE):
            continue
        if job.rows is None and job.role != "images":
            raise AuditError("was not read completely by the audit", where=job.uri, hint=_AUDITED)
        wanted = job.images if job.role == "images" else job.rows
        with _naming(job.uri):
            rows = _rows_in(job, job.uri, options)
        if rows != wanted:
            raise AuditError(f"has {rows:,} rows, but had {wanted:,} when audited", where=job.uri, hint=_AUDITED)


def _refuse_images(jobs: Sequence[CopyTask], exclusions: Exclusions) -> None:
    """Raise an error for images that no exclusion can name, and for folders whose number of images has changed."""
    found: Counter[str] = Counter()
    for job in jobs:
        if job.role == "images" and exclusions.rows_of and not exclusions.samples_of:
            raise UsageError(
                "no exclusion names a tar sample or an image, because the run's captions have no images of their own",
                where=job.uri,
                hint="Set images.join_on and audit again, or clean only the captions.",
            )
        if job.is_image:
            found[posixpath.dirname(job.name)] += 1
    for folder, count in found.items():
        if count != exclusions.folders[folder]:
            was = f"{exclusions.folders[folder]:,}"
            what = f"has {count:,} images, but had {was} when audited"
            raise AuditError(what, where=folder or "the image folder", hint=_AUDITED)


def _clean(job: CopyTask, filesystem: pafs.FileSystem, options: Captions, scheme: str) -> Counts:
    """Write one clean copy. It gets its final name only after its rows have been counted and the counts agree."""
    if job.kind == WHOLE:
        if not job.is_image:
            text.check_whole(File(job.uri, job.name, 0), job.part)
        if "drop" in job.part["action"].to_pylist():
            return _proved(Counts(1, 1, 0, len(job.part)), job)
    counts = Counts(0, 0, 0, 0)

    def prove(temporary: str) -> None:
        nonlocal counts
        counts = _proved(replace(counts, rows_out=_rows_in(job, scheme + temporary, options)), job)

    with writing(filesystem, job.target, check=prove) as sink:
        counts = _write(job, sink, options)
    return counts


def _write(job: CopyTask, sink: pa.NativeFile, options: Captions) -> Counts:
    file = File(job.uri, job.name, 0)
    if job.kind == LINES:
        return text.clean(file, sink, job.part, options)
    with open_file(job.uri) as source:
        if job.kind == ROWS:
            return parquet.clean(source, sink, job.part, options.caption if job.role != "images" else None)
        if job.kind == SAMPLES:
            if job.role != "images":
                text.compare(file, job.part, options)
            named = zip(*(job.part[name].to_pylist() for name in ("row", "key", "action")), strict=True)
            counts = tar.clean(source, sink, {row: (key, action) for row, key, action in named}, job.images)
            if job.rows is not None and counts.rows_in != job.rows:
                what = f"has {counts.rows_in:,} samples, but had {job.rows:,} when audited"
                raise AuditError(what, hint=_AUDITED)
            return counts
        shutil.copyfileobj(source, sink, 1 << 22)
    return Counts(1, 0, 0, len(job.part))


def _rows_in(job: CopyTask, uri: str, options: Captions) -> int:
    """Return the number of rows or samples in a file of the job's kind."""
    if job.kind == LINES:
        return text.count(File(uri, job.name, 0), options)
    with open_file(uri) as source:
        if job.kind == ROWS:
            return pq.read_metadata(source).num_rows
        return tar.count(source) if job.kind == SAMPLES else 1


def _proved(counts: Counts, job: CopyTask) -> Counts:
    """Return the counts, or raise AuditError if they are inconsistent."""
    wanted, drops = len(job.part), job.part["action"].to_pylist().count("drop")
    if counts.met != wanted:
        raise AuditError(
            f"only {counts.met:,} of {wanted:,} exclusions were found: the file is shorter than when audited",
            hint=_AUDITED,
        )
    if counts.dropped != drops or counts.rows_in != counts.dropped + counts.rows_out:
        raise AuditError(f"the counts do not add up: {_shown(counts, job.unit)}; expected to drop {drops:,}")
    return counts


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Add the name of the file to errors raised in this context."""
    try:
        yield
    except AuditError as error:
        if error.where is not None:
            raise
        raise type(error)(error.what, where=uri, hint=error.hint) from error
    except (pa.ArrowException, tarfile.TarError, OSError, EOFError) as error:
        raise AuditError(f"cannot be copied: {' '.join(str(error).split())}", where=uri) from error
