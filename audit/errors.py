"""The one exception a user is meant to read."""

from __future__ import annotations


class AuditError(Exception):
    """Something a user can mend: what went wrong, where, and what to do.

    The message is one or two lines. `kind` is the short word that goes into the `errors` table.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None, kind: str = "error") -> None:
        self.what, self.where, self.hint, self.kind = what, where, hint, kind
        message = f"{where}: {what}" if where else what
        super().__init__(f"{message}\n{hint}" if hint else message)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.where, self.hint, self.kind)


class UsageError(AuditError):
    """Wrong usage or configuration: the command line exits with 2, not 1."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_usage, (self.what, self.where, self.hint, self.kind)


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _rebuild(what: str, where: str | None, hint: str | None, kind: str) -> AuditError:
    return AuditError(what, where=where, hint=hint, kind=kind)


def _rebuild_usage(what: str, where: str | None, hint: str | None, kind: str) -> UsageError:
    return UsageError(what, where=where, hint=hint, kind=kind)
