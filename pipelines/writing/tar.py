"""Copy a WebDataset tar without excluded samples; the bytes of all others are unchanged."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from audit.errors import AuditError
from pipelines.reading.folders import is_image
from pipelines.reading.images import samples
from pipelines.writing.counts import Counts

_CHUNK = 1 << 22


def clean(
    source: pa.NativeFile, sink: pa.NativeFile, exclusions: Mapping[int, tuple[str | None, str]], images: int | None
) -> Counts:
    """Copy a tar without the members of dropped samples.

    Args:
        source: The tar.
        sink: The copy.
        exclusions: (key, action) by number of the sample.
        images: The number of samples with an image, or None if it is unknown.

    Returns:
        The counts, with `rows_out` 0: count the samples of the copy to get it.

    Raises:
        AuditError: An excluded sample does not have the key that was audited, or the number of images differs.
        tarfile.TarError: The tar is truncated.
    """
    gaps: list[tuple[int, int]] = []
    met, dropped, pictures = set(), set(), set()
    last = -1
    for number, key, member, end in samples(source):
        last = number
        if is_image(member.name):
            pictures.add(number)
        if number not in exclusions:
            continue
        expected, action = exclusions[number]
        if expected is not None and key != expected:
            what = f"sample {number}: its key is {key}, not {expected} as in the audited file"
            raise AuditError(what, hint="Give the same files that the run read, or audit these files.")
        met.add(number)
        if action == "drop":
            dropped.add(number)
            gaps.append((member.offset, end))
    if images is not None and len(pictures) != images:
        raise AuditError(
            f"has {len(pictures):,} images, but the audited file had {images:,}",
            hint="Give the same files that the run read, or audit these files.",
        )
    _copy(source, sink, gaps)
    return Counts(last + 1, len(dropped), 0, len(met))


def count(source: pa.NativeFile) -> int:
    """Return the number of samples in a tar."""
    return 1 + max((number for number, *_ in samples(source)), default=-1)


def _copy(source: pa.NativeFile, sink: pa.NativeFile, gaps: list[tuple[int, int]]) -> None:
    position = 0
    for start, stop in [*gaps, (source.size(), source.size())]:
        source.seek(position)
        while position < start:
            chunk = source.read(min(_CHUNK, start - position))
            if not chunk:
                raise EOFError("the archive ended while it was copied")
            sink.write(chunk)
            position += len(chunk)
        position = stop
