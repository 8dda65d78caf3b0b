"""Control captions: few enough to be held, in every format that captions come in."""

from __future__ import annotations

import os

from audit.errors import AuditError
from audit.record.filesystem import open_file
from pipelines.configuration.config import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading.files import File

# Rows that hold no caption are left out; any other error is one of the file.
_EMPTY = ("empty_line", "missing_caption")


def read_control_captions(path: str, column: str) -> list[str]:
    """Read the distinct control captions of a file in order, as captions of that format are read.

    Raises UsageError for an unknown format or a missing column, AuditError that names the first row that is malformed.
    """
    with open_file(path) as source:
        file = File(path, os.path.basename(path), source.size())
    options = Captions(path=path, caption=column)
    captions_of.check([file], options)
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


def spread(captions: list[str], most: int) -> list[str]:
    """At most so many of them, evenly over the list."""
    return captions[:: -(-len(captions) // most)] if len(captions) > most else captions
