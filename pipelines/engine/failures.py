"""Interpret Ray's errors: whether the worker or its machine failed, and why."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from audit.errors import first_line


def lost_with_machine(error: BaseException) -> bool:
    """Return whether the machine failed rather than the worker on it, as far as Ray can tell."""
    unknown = isinstance(error, ActorUnavailableError) or not isinstance(error, RayTaskError | RayActorError)
    return unknown or "its node has died" in str(error) or getattr(error, "preempted", False)


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that was raised on the worker, or the error itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, RayTaskError) and isinstance(cause, BaseException) else error


def reason_of(error: BaseException) -> str:
    """Return the reason for a failure in one sentence, as Ray gives it."""
    if isinstance(error, RayTaskError):
        return f"{type(cause_of(error)).__name__}: {first_line(cause_of(error))}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if getattr(error, "actor_init_failed", False):
        return lines[-1]
    detail = " ".join(lines).partition("Worker exit detail: ")[2].partition(". ")[0]
    return detail or next((line for line in lines[1:] if line.startswith("The actor")), lines[0])[:200]
