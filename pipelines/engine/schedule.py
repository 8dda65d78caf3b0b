"""Which shard is tried next, and what becomes of one that fails. No Ray and no clock: a test can drive it anywhere.

A shard that fails is tried again a bounded number of times. One that still fails is halved, and its failing halves
again, down to single rows; a row that fails alone is lost, and what it leaves behind (a row of `errors`) takes its
place. An attempt whose machine is lost says nothing about its rows: it is made again, MOVES times before it counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from audit.errors import AuditError
from audit.record.ledger import Shard

# So many single rows lost in a row, and nothing done in between, is not bad data but a broken set-up.
BARREN = 20
MOVES = 5


class ShardedWork(Protocol):
    """What one map does, from the driver's side."""

    def lost(self, shard: Shard, kind: str, message: str) -> Any:
        """What a single row that cannot be worked leaves behind; raises AuditError where nothing may be lost."""

    def commit(self, shard: Shard, pieces: list[Any]) -> Any:
        """Writes a shard that came in pieces, in the order of their rows, and returns what a worker would have."""


@dataclass(slots=True)
class Attempt:
    """One try at `shard`: at `whole`, or at a piece of it. `tries` and `moves` count those before."""

    shard: Shard
    whole: Shard
    tries: int = 0
    moves: int = 0

    @property
    def piece(self) -> bool:
        return self.shard is not self.whole


@dataclass(slots=True)
class _Pieces:
    missing: int
    results: dict[int, Any] = field(default_factory=dict)


# What an answer finished: (shard, result), or nothing yet.
Finished = list[tuple[Shard, Any]]


class Schedule:
    """The attempts of one map. Each that was taken comes back once, by `done`, `failed` or `moved`.

    Every shard is finished once, whatever comes back in which order.
    """

    def __init__(self, work: ShardedWork, shards: Sequence[Shard], retries: int) -> None:
        self._work, self._retries = work, retries
        self._waiting = deque(Attempt(shard, shard) for shard in shards)
        self._split: dict[str, _Pieces] = {}
        self._barren = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self) -> Attempt | None:
        return self._waiting.popleft() if self._waiting else None

    def done(self, attempt: Attempt, result: Any) -> Finished:
        self._barren = 0
        return self._finished(attempt, result)

    def moved(self, attempt: Attempt, message: str) -> Finished:
        """The worker was lost with its machine, or nobody knows."""
        attempt.moves += 1
        if attempt.moves > MOVES:
            return self.failed(attempt, "worker_died", message)
        self._waiting.appendleft(attempt)
        return []

    def failed(self, attempt: Attempt, kind: str, message: str) -> Finished:
        """Raises AuditError if nothing can be worked at all, or nothing may be lost.

        Halves are tried once and rows as often as shards, so that one deadly row costs about log2(rows) workers.
        """
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
            raise AuditError(f"{BARREN} rows in a row failed, the last one: {kind}: {message}")
        self._split.setdefault(attempt.whole.name, _Pieces(len(attempt.whole)))
        return self._finished(attempt, self._work.lost(attempt.shard, kind, message))

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
