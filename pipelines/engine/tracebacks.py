"""Keep the traceback of a failure: from a worker to the driver, and when only its first line is shown."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from audit.errors import AuditError, first_line

Given = ParamSpec("Given")
Result = TypeVar("Result")

# Bytes of a traceback that are kept: the last ones, which say where and why it failed.
LONGEST = 1 << 14
# Modules whose frames begin every traceback of a worker. They say nothing about the failure.
_ENGINE = ("pipelines.engine.", "pipelines.console.logs", "ray.")


class WorkerError(Exception):
    """An exception that a worker raised, in a form that every process can unpickle.

    Pickling drops the traceback of an exception, and some exceptions cannot be unpickled at all.

    Args:
        message: The type of the exception and the first line of its message.
        traceback: Its traceback.
        error: The exception itself if it is an AuditError, which can be pickled.
    """

    def __init__(self, message: str, traceback: str, error: AuditError | None = None) -> None:
        super().__init__(message, traceback, error)
        self.message, self.traceback, self.error = message, traceback, error

    def __str__(self) -> str:
        return self.message


def portable_errors(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make a method raise its exceptions as WorkerError."""

    @wraps(method)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise portable(error) from None

    return call


def portable(error: Exception) -> WorkerError:
    """Return a WorkerError for an exception that has just been caught."""
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").startswith(_ENGINE):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames))
    known = error if isinstance(error, AuditError) else None
    return WorkerError(encodable(f"{type(error).__name__}: {first_line(error)}"), shortened(text), known)


def shortened(text: str) -> str:
    """Return the last LONGEST bytes of a traceback."""
    content = encodable(text).rstrip().encode()
    return content.decode() if len(content) <= LONGEST else f"...{content[3 - LONGEST :].decode(errors='ignore')}"


def encodable(text: str) -> str:
    """Escape surrogates, which occur in names of files and which a table cannot store."""
    return text.encode(errors="backslashreplace").decode()


def text_of(error: BaseException) -> str:
    """Return the traceback of the worker that caused an error, or that of the error itself."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, WorkerError):
        at = _previous(at)
    return "".join(traceback.format_exception(error)) if at is None else f"In a worker:\n{at.traceback}\n"


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
    root = error
    while (cause := _previous(root)) is not None:
        root = cause
    return _named(error) if root is error else f"{_named(error)} (caused by {_named(root)})"


def keep(error: BaseException) -> str:
    """Write the traceback of an exception to a new file. Returns its path, or why there is none."""
    text = f"crossaudit {' '.join(sys.argv[1:])}\n\n{text_of(error)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="crossaudit-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as failed:
        return f"no file ({first_line(failed)})"
    return file.name


def _previous(error: BaseException) -> BaseException | None:
    """Return the exception that caused this one, or that was being handled when this one was raised."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _named(error: BaseException) -> str:
    return error.message if isinstance(error, WorkerError) else f"{type(error).__name__}: {first_line(error)}"
