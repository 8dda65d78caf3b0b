"""Where the traceback of a failure is kept when only its first line is shown."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING

from audit.errors import AuditError, first_line

if TYPE_CHECKING:
    from audit.record.ledger import Ledger

# Tracebacks that are kept of one step: later failures mostly repeat them.
MOST = 5


def plain(error: Exception) -> AuditError:
    """Return what a user reads of an exception that no code foresaw: in one line what it is, and what to do.

    The full traceback goes to a file in the temporary folder, which the message names.
    """
    hint = f"The traceback is in {keep(error)}; --verbose shows it."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return AuditError(
            error.strerror.lower(),
            where=os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename),
            hint=f"Check that it is there, and what kind of file it is and who may read and write it. {hint}",
        )
    if isinstance(error, MemoryError):
        return AuditError(f"there is not enough memory: {first_line(error)}", hint=hint)
    return AuditError(in_one_line(error), hint=hint)


def in_one_line(error: BaseException) -> str:
    """Return the type and the first line of an exception, and those of the exception that caused it."""
    said = f"{type(error).__name__}: {first_line(error)}"
    root: BaseException = error
    while (cause := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        root = cause
    return said if root is error else f"{said} (caused by {type(root).__name__}: {first_line(root)})"


def keep(error: BaseException) -> str:
    """Write the traceback of an exception to a file of its own; return its path, or why there is none."""
    text = f"crossaudit {' '.join(sys.argv[1:])}\n\n" + "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="crossaudit-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as failed:
        return f"no file ({first_line(failed)})"
    return file.name


class StepLog:
    """The tracebacks of the first failures of one step of a run, in RUN/logs."""

    def __init__(self, ledger: Ledger, title: str) -> None:
        self._ledger = ledger
        self._kept: list[str] = []
        self.name = f"logs/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.log"

    def add(self, shard: str, text: str) -> None:
        """Keep the traceback of a shard's failure, if it is one of the first."""
        if len(self._kept) >= MOST:
            return
        self._kept.append(f"shard {shard}\n{text.rstrip()}\n")
        try:
            self._ledger.write_bytes(self.name, "\n".join(self._kept).encode(errors="backslashreplace"))
        except (OSError, AuditError):
            self._kept.clear()  # what failed first is what counts

    @property
    def note(self) -> str | None:
        """Where they are; None if there are none."""
        return f"The tracebacks of the first failures are in {self._ledger.uri}/{self.name}." if self._kept else None

    def naming(self, error: AuditError) -> AuditError:
        """Return the same error, with where the tracebacks are."""
        if self.note is None:
            return error
        hint = f"{error.hint} {self.note}" if error.hint else self.note
        return type(error)(error.what, where=error.where, hint=hint, kind=error.kind)
