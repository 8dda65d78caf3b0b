"""A WebDataset tar without some of its samples; every byte of the others stays as it is."""

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
    """Copies all but the members of dropped samples; `exclusions`: (key, action) by number of the sample.

    `rows_out` is not known yet: count what was written. Raises AuditError if an excluded sample has another key than
    the one that was audited, or the tar other than `images` samples with an image; tarfile.TarError if it is truncated.
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
            what = f"sample {number}: its key is {key}, not {expected} as in the file that was audited"
            raise AuditError(what, hint="Give the very files that the run read, or audit these.")
        met.add(number)
        if action == "drop":
            dropped.add(number)
            gaps.append((member.offset, end))
    if images is not None and len(pictures) != images:
        raise AuditError(
            f"has {len(pictures):,} images, the file that was audited {images:,}",
            hint="Give the very files that the run read, or audit these.",
        )
    _copy(source, sink, gaps)
    return Counts(last + 1, len(dropped), 0, len(met))


def count(source: pa.NativeFile) -> int:
    """The samples of a tar."""
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
