"""Keep the traceback of a failure when only its first line is shown."""

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

# Tracebacks to keep per step. Later failures are mostly repetitions.
MOST = 5


def plain(error: Exception) -> AuditError:
    """Return a one-line error for an unexpected exception, with a hint.

    Writes the full traceback to a file in the temporary folder. The hint names the file.
    """
    hint = f"The traceback is in {keep(error)}; --verbose shows it."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return AuditError(
            error.strerror.lower(),
            where=os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename),
            hint=f"Check that it exists, what kind of file it is, and its permissions. {hint}",
        )
    if isinstance(error, MemoryError):
        return AuditError(f"not enough memory: {first_line(error)}", hint=hint)
    return AuditError(in_one_line(error), hint=hint)


def in_one_line(error: BaseException) -> str:
    """Return the type and first line of an exception, and of its root cause if it has one."""
    said = f"{type(error).__name__}: {first_line(error)}"
    root: BaseException = error
    while (cause := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        root = cause
    return said if root is error else f"{said} (caused by {type(root).__name__}: {first_line(root)})"


def keep(error: BaseException) -> str:
    """Write the traceback of an exception to a new file. Returns its path, or why there is none."""
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
    """A log in RUN/logs with the tracebacks of a step's first failures."""

    def __init__(self, ledger: Ledger, title: str) -> None:
        self._ledger = ledger
        self._kept: list[str] = []
        self.name = f"logs/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.log"

    def add(self, shard: str, text: str) -> None:
        """Store the traceback of a failed shard, unless the log already has MOST of them."""
        if len(self._kept) >= MOST:
            return
        self._kept.append(f"shard {shard}\n{text.rstrip()}\n")
        try:
            self._ledger.write_bytes(self.name, "\n".join(self._kept).encode(errors="backslashreplace"))
        except (OSError, AuditError):
            self._kept.clear()  # the failure of the shard matters more than that of its log

    @property
    def note(self) -> str | None:
        """A sentence that says where the tracebacks are; None if there are none."""
        return f"The tracebacks of the first failures are in {self._ledger.uri}/{self.name}." if self._kept else None

    def naming(self, error: AuditError) -> AuditError:
        """Return the same error, with a hint that says where the tracebacks are."""
        if self.note is None:
            return error
        hint = f"{error.hint} {self.note}" if error.hint else self.note
        return type(error)(error.what, where=error.where, hint=hint, kind=error.kind)
