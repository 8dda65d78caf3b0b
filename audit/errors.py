"""Exceptions whose messages are written for the user."""

from __future__ import annotations


class AuditError(Exception):
    """Report a problem that the user can fix: what went wrong, where, and what to do.

    The message has one or two lines: `where: what`, then `hint`.

    Args:
        what: What went wrong.
        where: The file, row or key concerned.
        hint: What the user can do about it.
        kind: A short word for the kind of failure, stored in the `errors` table.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None, kind: str = "error") -> None:
        self.what, self.where, self.hint, self.kind = what, where, hint, kind
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}\n{hint}" if hint else message)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.where, self.hint, self.kind)


class UsageError(AuditError):
    """Report wrong usage or configuration: the command line exits with status 2 instead of 1."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_usage, (self.what, self.where, self.hint, self.kind)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _rebuild(what: str, where: str | None, hint: str | None, kind: str) -> AuditError:
    return AuditError(what, where=where, hint=hint, kind=kind)


def _rebuild_usage(what: str, where: str | None, hint: str | None, kind: str) -> UsageError:
    return UsageError(what, where=where, hint=hint, kind=kind)
