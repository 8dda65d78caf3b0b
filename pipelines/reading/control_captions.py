"""Read control captions from any format of captions. They are few enough to be held in memory."""

from __future__ import annotations

from audit.errors import AuditError, UsageError
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading import columns
from pipelines.reading.files import File, file_at

# Rows without a caption are skipped. Any other error is raised.
_EMPTY = ("empty_line", "missing_caption")


def read_control_captions(path: str, column: str | None = None) -> list[str]:
    """Read the distinct control captions of a file, in order, in the same way as the captions of a run.

    Args:
        path: The path or URI of one file.
        column: `calibration.column`, or None for the default caption column of the file.

    Raises:
        UsageError: The format is unknown, or the column is missing.
        AuditError: A row is malformed. The error names the first such row.
    """
    file = file_at(path)
    options = Captions(path=path)
    chosen = columns.column_of([file], options) if column is None else column
    options = options.model_copy(update={"caption": chosen or columns.DEFAULT})
    _check(file, options, column is None)
    slices, problems = captions_of.plan(file, options)
    found: list[str] = []
    for part in slices:
        table, errors = captions_of.read(part, 0, part.rows, options)
        problems += [error for error in errors if error["kind"] not in _EMPTY]
        found += table["caption"].to_pylist()
    if problems:
        row = problems[0]["row"]
        what = problems[0]["message"] if row is None else f"row {row}: {problems[0]['message']}"
        raise AuditError(f"a control caption cannot be read: {what}", where=path, hint="Correct or remove it.")
    return list(dict.fromkeys(caption for caption in found if caption.strip()))


def _check(file: File, options: Captions, unnamed: bool) -> None:
    """Check that a file holds captions. Errors name `calibration.column` instead of `captions.caption`."""
    try:
        captions_of.check([file], options)
    except UsageError as error:
        hint = (error.hint or "").replace("captions.caption", "calibration.column")
        if unnamed and "calibration.column" in hint:
            hint = f"Call the column of the captions {columns.DEFAULT!r}, or give a text file, one caption a line."
        raise UsageError(error.what, where=error.where, hint=hint) from error
