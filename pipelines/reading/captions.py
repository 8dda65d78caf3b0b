"""Read captions of any format. Every row of a file becomes one or more captions, or one row of `errors`.

A format is a module with the functions `columns(file, captions)`, `check(file, captions)`, `plan(file, captions)` and
`read(slice, start, stop, captions)`. The suffix of the file name chooses the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError, UsageError
from pipelines.configuration.inputs import Captions
from pipelines.reading import caption_files, delimited, jsonlines, parquet, plaintext, tars
from pipelines.reading.files import File
from pipelines.reading.slices import COMPRESSED, LONGEST, UNREADABLE, Malformed, Slice, reason

# Suffix -> module of the format, and whether its files may be compressed.
FORMATS: dict[str, tuple[ModuleType, bool]] = {
    ".parquet": (parquet, False),
    ".tar": (tars, False),
    ".jsonl": (jsonlines, True),
    ".ndjson": (jsonlines, True),
    ".csv": (delimited, True),
    ".tsv": (delimited, True),
    ".txt": (plaintext, True),
}
# The `status` that img2dataset writes for a row whose image was downloaded.
DOWNLOADED = "success"
_EMPTY = pa.schema([("caption", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("url", pa.string())])


def format_of(name: str) -> ModuleType:
    """Return the module that reads files with this name. Raises UsageError that lists the known formats."""
    plain = name
    for suffix in COMPRESSED:
        plain = plain.removesuffix(suffix)
    for suffix, (module, compressible) in FORMATS.items():
        if plain.endswith(suffix) and (plain == name or compressible):
            return module
    packed = ", ".join(suffix for suffix, (_, compressible) in FORMATS.items() if compressible)
    raise UsageError(
        "no format of captions is known by that name",
        where=name,
        hint=f"Known: {', '.join(FORMATS)}; {packed} also with {', '.join(COMPRESSED)} behind. Try a glob: x/*.parquet",
    )


def module_of(file: File) -> ModuleType:
    """Return the module that reads a file. Raises UsageError that lists the known formats."""
    return caption_files if isinstance(file, caption_files.Sidecar) else format_of(file.name)


def known(name: str) -> bool:
    """Tell whether a file with this name has a known format."""
    try:
        format_of(name)
    except UsageError:
        return False
    return True


def check(files: Sequence[File], captions: Captions) -> None:
    """Raise UsageError if a format is unknown or a column is missing, AuditError if none of the files can be read."""

    def problem(file: File) -> str | None:
        try:
            module_of(file).check(file, captions)
        except UNREADABLE as error:
            return reason(error)
        return None

    with ThreadPoolExecutor(16) as threads:
        problems = list(threads.map(problem, files))
    if all(problems):
        raise AuditError(f"none of {len(files)} files can be read", where=files[0].uri, hint=problems[0])


def plan(file: File, captions: Captions) -> tuple[list[Slice], list[dict]]:
    """Return the slices of a file, and an error row if part of it cannot be read.

    A file of lines is read through once to find its rows.
    """
    slices, problem = module_of(file).plan(file, captions)
    return slices, [unreadable(file, problem)] if problem else []


def unreadable(file: File, problem: str, row: int | None = None, rows: int | None = None) -> dict:
    """Return the error row of a file that cannot be read.

    Args:
        file: The file.
        problem: The reason.
        row: The first row that is lost, if it is known.
        rows: The number of rows that are lost, if it is known.

    Returns:
        The row, a dictionary of columns of `errors`.
    """
    where = {"stage": "ingest", "file": file.name, "row": row, "rows": rows}
    return where | {"kind": "unreadable_file", "message": problem}


def read(
    part: Slice, start: int, stop: int, captions: Captions, chosen: npt.NDArray[np.int64] | None = None
) -> tuple[pa.Table, list[dict]]:
    """Read rows [start, stop) of a slice.

    Every row is counted exactly once: it is in the table, once per caption, or in `rows` of one of the errors.

    Args:
        part: The slice.
        start: The first row to read, counted from the start of the slice.
        stop: The end of the rows to read.
        captions: The configured columns.
        chosen: The numbers, within the file, of the rows that a sample contains. Other rows are skipped. None
            means all rows.

    Returns:
        A table of caption, row, key and url, and the error rows of rows and captions that cannot be used.
    """
    wanted = stop - start if chosen is None else len(chosen)
    try:
        table, malformed = module_of(part.file).read(part, start, stop, captions)
    except UNREADABLE as error:
        if module_of(part.file) is parquet:
            if len(part.place) > 1:
                return _group_by_group(part, start, stop, captions, chosen)
            error = OSError(f"row group {part.place[0]}: {reason(error)}")
        return _EMPTY.empty_table(), [unreadable(part.file, reason(error), part.first + start, wanted)]
    if chosen is not None:
        table = table.filter(pc.is_in(table["row"], value_set=pa.array(chosen)))
        taken = set(chosen.tolist())
        malformed = [item for item in malformed if item.row in taken]
    downloaded = pc.fill_null(pc.equal(table["status"], DOWNLOADED), True)
    errors = _not_downloaded(part.file, table.filter(pc.invert(downloaded)))
    table, rejected = _decode(_one_each(table.filter(downloaded).drop_columns("status")))
    bad = sorted([*malformed, *rejected], key=lambda item: item.row)
    return table, errors + _once(bad, table, part.file)


def _group_by_group(
    part: Slice, start: int, stop: int, captions: Captions, chosen: npt.NDArray[np.int64] | None
) -> tuple[pa.Table, list[dict]]:
    """Read a Parquet slice as `read` does, one row group at a time, so that only unreadable row groups are lost."""
    tables, errors = [_EMPTY.empty_table()], []
    for group in parquet.groups(part):
        at = group.first - part.first
        low, high = max(start - at, 0), min(stop - at, group.rows)
        if low < high:
            inside = None if chosen is None else chosen[(chosen >= group.first + low) & (chosen < group.first + high)]
            table, problems = read(group, low, high, captions, inside)
            tables.append(table.select(_EMPTY.names))
            errors += problems
    return pa.concat_tables(tables), errors


def _not_downloaded(file: File, table: pa.Table) -> list[dict]:
    if not len(table):
        return []
    counts = pc.value_counts(table["status"]).to_pylist()
    reasons = ", ".join(f"{item['counts']} {item['values']}" for item in sorted(counts, key=lambda x: x["values"]))
    where = {"stage": "ingest", "file": file.name, "row": None, "rows": len(table)}
    return [where | {"kind": "not_downloaded", "message": f"status: {reasons}"}]


def _one_each(table: pa.Table) -> pa.Table:
    """Return one row per distinct caption of a list. An empty list counts as a missing caption."""
    column = table["caption"].combine_chunks()
    if not pa.types.is_list(column.type):
        return table
    empty = pc.equal(pc.fill_null(pc.list_value_length(column), 0), 0)
    rest = table.drop_columns("caption")
    full = rest.take(pc.list_parent_indices(column)).append_column("caption", pc.list_flatten(column))
    none = rest.filter(empty).append_column("caption", pa.nulls(pc.sum(empty).as_py() or 0, pa.binary()))
    both = pa.concat_tables([full, none]).group_by(["row", "caption"], use_threads=False)
    found = both.aggregate([("key", "first"), ("url", "first")]).rename_columns(["row", "caption", "key", "url"])
    return found.take(pc.sort_indices(found["row"])).select(["caption", "row", "key", "url"])


def _decode(table: pa.Table) -> tuple[pa.Table, list[Malformed]]:
    """Return the rows whose caption is valid text, as strings, and what is wrong with the others."""
    lengths = pc.fill_null(pc.binary_length(table["caption"]), LONGEST + 1)
    fits = pc.less_equal(lengths, LONGEST)
    kept, doubtful = table.filter(fits), table.filter(pc.invert(fits))
    try:
        return kept.set_column(0, "caption", kept["caption"].cast(pa.string())), _reasons(doubtful)
    except pa.ArrowInvalid:
        valid = pa.array([_invalid(value) is None for value in kept["caption"].to_pylist()], pa.bool_())
        bad = pa.concat_tables([doubtful, kept.filter(pc.invert(valid))])
        kept = kept.filter(valid)
        return kept.set_column(0, "caption", kept["caption"].cast(pa.string())), _reasons(bad)


def _reasons(table: pa.Table) -> list[Malformed]:
    found = []
    for value, row in zip(table["caption"].to_pylist(), table["row"].to_pylist(), strict=True):
        if value is None:
            found.append(Malformed(row, "missing_caption", "the caption is null"))
        elif len(value) > LONGEST:
            found.append(Malformed(row, "too_long", f"the caption is {len(value):,} bytes long, over {LONGEST:,}"))
        else:
            found.append(Malformed(row, "invalid_utf8", f"the caption is not UTF-8: {_invalid(value)}"))
    return found


def _invalid(value: bytes) -> str | None:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start} ({error.reason})"
    return None


def _once(bad: list[Malformed], table: pa.Table, file: File) -> list[dict]:
    """Return error rows. `rows` is 0 if the row is already counted through another of its captions."""
    numbers = pa.array([item.row for item in bad], pa.int64())
    counted = set(numbers.filter(pc.is_in(numbers, value_set=table["row"].combine_chunks())).to_pylist())
    errors = []
    for item in bad:
        where = {"stage": "ingest", "file": file.name, "row": item.row, "rows": 0 if item.row in counted else 1}
        errors.append(where | {"kind": item.kind, "message": item.message})
        counted.add(item.row)
    return errors
