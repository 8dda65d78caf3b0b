"""Interpret Ray's errors: whether the worker or its machine failed, and why."""

from __future__ import annotations

import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayTaskError

from audit.errors import AuditError, first_line
from pipelines.engine.tracebacks import WorkerError, encodable, shortened

# The line that Ray puts in place of Python's: it names the process and the host.
_RAY_HEADER = re.compile(r"^.*ray::.*\(pid=.*$", re.M)


def lost_with_machine(error: BaseException) -> bool:
    """Return whether the machine failed rather than the worker on it, as far as Ray can tell."""
    of_worker = isinstance(error, RayTaskError | RayActorError | OutOfMemoryError)
    unknown = isinstance(error, ActorUnavailableError) or not of_worker
    return unknown or "its node has died" in str(error) or getattr(error, "preempted", False)


def raised_in_worker(error: BaseException) -> WorkerError | None:
    """Return what a worker raised, or None if the worker or its machine was lost."""
    if not isinstance(error, RayTaskError):
        return None
    cause = error.cause
    if isinstance(cause, WorkerError):
        return cause
    # Ray itself failed on the worker, for example because the worker could not import what it was sent.
    known = cause if isinstance(cause, AuditError) else None
    message = encodable(f"{type(cause).__name__}: {first_line(cause)}")
    return WorkerError(message, shortened(_RAY_HEADER.sub("Traceback (most recent call last):", str(error))), known)


def reason_of(error: BaseException) -> str:
    """Return the reason for a failure in one sentence, as Ray gives it."""
    if (raised := raised_in_worker(error)) is not None:
        return raised.message
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]
    detail = " ".join(lines).partition("Worker exit detail: ")[2].partition(". ")[0]
    return detail or next((line for line in lines[1:] if line.startswith("The actor")), lines[0])[:200]
