"""Copy text with one row per line or CSV record without excluded rows; the bytes of all others are unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from audit.duplicates.captions import caption_id
from audit.errors import AuditError
from audit.record.filesystem import open_file
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading import delimited
from pipelines.reading.files import File
from pipelines.reading.slices import BYTE_ORDER_MARK, COMPRESSED, chunks, lines
from pipelines.writing.counts import Counts

ANOTHER = "Give the same files that the run read, or audit these files."


def clean(file: File, sink: pa.NativeFile, exclusions: pa.Table, options: Captions) -> Counts:
    """Copy a file without the dropped rows, keeping the header, quotes, line ends and byte-order mark.

    Args:
        file: JSON lines, CSV, TSV or plain text. If the suffix says that it is compressed, so is the copy.
        sink: The copy.
        exclusions: (row, caption_id, action), sorted by row, without duplicates.
        options: How the audit read captions.

    Returns:
        The counts, with `rows_out` 0: count the rows of the copy to get it.

    Raises:
        AuditError: The caption of an excluded row is not the one that was audited.
    """
    compare(file, exclusions, options)
    drops = set(exclusions.filter(pc.equal(exclusions["action"], "drop"))["row"].to_pylist())
    listed = set(exclusions["row"].to_pylist())
    codec = next((codec for suffix, codec in COMPRESSED.items() if file.name.endswith(suffix)), None)
    packed = sink if codec is None else pa.CompressedOutputStream(sink, codec)
    begin, sizes = _rows(file, options)
    content = _Content(file)
    packed.write(content.take(begin))
    rows = met = dropped = 0
    for size in sizes:
        line = content.take(size)
        if rows not in drops:
            packed.write(line)
        elif rows == 0 and begin == 0 and line.startswith(BYTE_ORDER_MARK):
            packed.write(BYTE_ORDER_MARK)
        met, dropped, rows = met + (rows in listed), dropped + (rows in drops), rows + 1
    if packed is not sink:
        packed.close()
    return Counts(rows, dropped, 0, met)


def count(file: File, options: Captions) -> int:
    """Count the rows of a file as the audit does. Raises AuditError if the file cannot be read completely."""
    slices, problems = captions_of.plan(file, options)
    if problems:
        raise AuditError(f"cannot be read: {problems[0]['message']}", where=file.uri)
    return sum(part.rows for part in slices)


def compare(file: File, exclusions: pa.Table, options: Captions) -> None:
    """Compare the captions of excluded rows with those that were audited.

    Args:
        file: The file.
        exclusions: (row, caption_id, action).
        options: How the audit read captions.

    Raises:
        AuditError: The caption of an excluded row is not the one that was audited.
    """
    expected = {
        row: id_
        for row, id_ in zip(exclusions["row"].to_pylist(), exclusions["caption_id"].to_pylist(), strict=True)
        if id_ is not None
    }
    slices = captions_of.plan(file, options)[0] if expected else []
    for part in slices:
        here = {row: id_ for row, id_ in expected.items() if part.first <= row < part.first + part.rows}
        if not here:
            continue
        table, _ = captions_of.read(part, 0, part.rows, options)
        found: dict[int, list[str]] = {row: [] for row in here}
        table = table.filter(pc.is_in(table["row"], value_set=pa.array(list(here), pa.int64())))
        for row, caption in zip(table["row"].to_pylist(), table["caption"].to_pylist(), strict=True):
            found[row].append(caption_id(caption))
        for row, id_ in here.items():
            if id_ not in found[row]:
                there = ", ".join(found[row]) or "none"
                what = f"row {row}: its caption is not the one that was audited ({there}, not {id_})"
                raise AuditError(what, where=file.uri, hint=ANOTHER)


def check_whole(file: File, exclusions: pa.Table) -> None:
    """Compare a file that is one caption, with or without surrounding white space, with the audited caption.

    Raises AuditError if it is not the caption that was audited.
    """
    with open_file(file.uri) as source:
        text = source.read().removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    found = {caption_id(part) for part in (text, text.strip(), *text.splitlines(), *map(str.strip, text.splitlines()))}
    for id_ in exclusions["caption_id"].drop_null().to_pylist():
        if id_ not in found:
            raise AuditError("its caption is not the one that was audited", where=file.uri, hint=ANOTHER)


def _rows(file: File, options: Captions) -> tuple[int, Iterator[int]]:
    """Return the number of bytes before the first row, and the size of each row in bytes."""
    if captions_of.format_of(file.name) is delimited:
        return delimited.spans(file, options)
    return 0, (size for size, _ in lines(file))


class _Content:
    """Read the uncompressed content of a file piece by piece."""

    def __init__(self, file: File) -> None:
        self._chunks, self._rest = chunks(file), bytearray()

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the file."""
        while len(self._rest) < size and (chunk := next(self._chunks, None)):
            self._rest += chunk
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken
