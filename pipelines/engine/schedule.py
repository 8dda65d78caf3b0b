"""Decide which shard to try next and what to do with one that fails. Uses neither Ray nor a clock, for easy testing.

A failed shard is retried a limited number of times. If it still fails, it is split into halves, and failing halves are
split again, down to single rows. A row that fails alone is lost, and a row in `errors` takes its place. An attempt
whose machine was lost says nothing about its rows: it is repeated up to MOVES times before it counts as a failure.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from audit.errors import AuditError, UsageError
from audit.record.filesystem import DISK_FULL
from audit.record.ledger import Shard
from pipelines.engine.tracebacks import WorkerError

# If this many consecutive single rows are lost and nothing succeeds in between, the set-up is broken, not the data.
BARREN = 20
MOVES = 5

logger = logging.getLogger(__name__)


class ShardedWork(Protocol):
    """What the driver needs to know about the work that it maps over shards."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that workers must have loaded."""
        ...

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> Any:
        """Return the result for a single row that cannot be processed. Raises AuditError if no row may be lost."""

    def commit(self, shard: Shard, pieces: list[Any]) -> Any:
        """Write a shard from its pieces, ordered by row, and return what a worker would have returned."""


@dataclass(slots=True)
class Attempt:
    """One attempt at `shard`, which is `whole` or a piece of it. `tries` and `moves` count the earlier attempts."""

    shard: Shard
    whole: Shard
    tries: int = 0
    moves: int = 0

    @property
    def piece(self) -> bool:
        """Whether the shard is a piece of a larger one."""
        return self.shard is not self.whole

    @property
    def number(self) -> int:
        """The number of this attempt, from 1."""
        return self.tries + self.moves + 1


@dataclass(slots=True)
class _Pieces:
    missing: int
    results: dict[int, Any] = field(default_factory=dict)


# The shards that an answer has finished, as (shard, result); may be empty.
Finished = list[tuple[Shard, Any]]


class Schedule:
    """The attempts of one map.

    Each attempt that is taken must come back once, through `done`, `failed` or `moved`. Every shard is finished exactly
    once, regardless of the order in which attempts come back.
    """

    def __init__(self, work: ShardedWork, shards: Sequence[Shard], retries: int) -> None:
        self._work, self._retries = work, retries
        self._waiting = deque(Attempt(shard, shard) for shard in shards)
        self._split: dict[str, _Pieces] = {}
        self._barren = 0

    @property
    def waiting(self) -> int:
        """Number of attempts that are waiting."""
        return len(self._waiting)

    def take(self) -> Attempt | None:
        """Return the next attempt, or None if there is none."""
        return self._waiting.popleft() if self._waiting else None

    def done(self, attempt: Attempt, result: Any) -> Finished:
        """Record a successful attempt."""
        self._barren = 0
        return self._finished(attempt, result)

    def moved(self, attempt: Attempt, message: str) -> Finished:
        """Record an attempt whose worker was lost with its machine, or for an unknown reason."""
        _log(attempt, "machine_lost", message)
        attempt.moves += 1
        if attempt.moves > MOVES:
            return self.failed(attempt, "worker_died", message)
        self._waiting.appendleft(attempt)
        return []

    def failed(self, attempt: Attempt, kind: str, message: str, traceback: str | None = None) -> Finished:
        """Record a failed attempt.

        Halves are tried once, and single rows as often as shards, so one deadly row costs about log2(rows) workers.

        Args:
            attempt: The attempt.
            kind: The kind of the error.
            message: Its message.
            traceback: The traceback of the worker's exception, if it raised one.

        Raises:
            AuditError: Nothing can be processed at all, or a row is lost that may not be lost.
        """
        _log(attempt, kind, message)
        attempt.tries += 1
        single = len(attempt.shard) <= 1
        if (single or not attempt.piece) and attempt.tries <= self._retries:
            self._waiting.appendleft(attempt)
            return []
        if not single:
            self._waiting.extendleft(Attempt(half, attempt.whole) for half in reversed(attempt.shard.halves()))
            self._split.setdefault(attempt.whole.name, _Pieces(len(attempt.whole)))
            return []
        self._barren += 1
        if self._barren == BARREN:
            what = f"{BARREN} consecutive rows failed; the last error: {kind}: {message}"
            raise unprocessable(what, kind, message, traceback)
        self._split.setdefault(attempt.whole.name, _Pieces(len(attempt.whole)))
        return self._finished(attempt, self._work.lost(attempt.shard, kind, message, traceback))

    def _finished(self, attempt: Attempt, result: Any) -> Finished:
        whole = attempt.whole
        if whole.name not in self._split:
            return [(whole, result)]
        pieces = self._split[whole.name]
        pieces.results[attempt.shard.start] = result
        pieces.missing -= len(attempt.shard)
        if pieces.missing:
            return []
        del self._split[whole.name]
        return [(whole, self._work.commit(whole, [pieces.results[at] for at in sorted(pieces.results)]))]


def ends_run(error: BaseException | None) -> bool:
    """Return whether an error ends the run at once, because neither another attempt nor a smaller shard can help."""
    return isinstance(error, UsageError) or (isinstance(error, AuditError) and error.kind == DISK_FULL)


def unprocessable(what: str, kind: str, message: str, traceback: str | None) -> AuditError:
    """Return the error that ends a run because of a failed attempt. Its cause is the worker's exception, if any.

    Args:
        what: What went wrong.
        kind: The kind of the attempt's error.
        message: Its message.
        traceback: The traceback of the worker's exception, if it raised one.
    """
    if traceback is None:
        return AuditError(what, kind=kind)
    hint = "The folder `logs` of the run has the tracebacks; --verbose shows the last one."
    error = AuditError(what, hint=hint, kind=kind)
    error.__cause__ = WorkerError(message, traceback)
    return error


def _log(attempt: Attempt, kind: str, message: str) -> None:
    shard = attempt.shard
    where = f"shard {shard.name}, rows {shard.start} to {shard.stop}, attempt {attempt.number}"
    logger.warning("%s: %s: %s", where, kind, message)
