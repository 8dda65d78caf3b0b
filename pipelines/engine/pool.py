"""A pool of Ray actors that works shards: between a least and a most number of them, as many as there is work for.

What is tried when is decided in `pipelines.engine.schedule`; here are the workers: asking Ray for them, which blocks
nobody, giving them shards, and noticing that they are lost. Results depend on the shards alone, never on how many
workers there are or in which order they finish. Why not Ray Data: docs/design.md, section 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from audit.errors import AuditError, UsageError, first_line
from audit.record.filesystem import DISK_FULL
from audit.record.ledger import Shard
from pipelines.engine.failures import cause_of, lost_with_machine, reason_of
from pipelines.engine.schedule import MOVES, Attempt, Finished, Schedule, ShardedWork

# How often in a row a worker may fail to start until its place is given up.
STARTS = 3
# Seconds without any worker until that is said, and without work until a worker beyond the least is let go.
PATIENCE = 60.0
# Seconds after which whoever maps hears that nothing was finished.
TICK = 5.0


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor, which has one call to answer at most. `failed` and `moved`: how often its place has failed to start, of
    itself and with its machine."""

    actor: Any
    failed: int = 0
    moved: int = 0
    needs: tuple[str, ...] = ()
    attempt: Attempt | None = None
    since: float = 0.0


class Pool:
    """Actors made by `make`. Each has `prepare(*needs)`, which loads and returns what by name, `run(work, shard)`,
    which also writes its result, and `compute(work, shard)`, which returns it.

    `workers`: the least and the most of them. `seconds`: the time limit of an attempt. `say`: told what is waited for.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        workers: tuple[int, int],
        retries: int,
        seconds: float | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._make, self._retries, self._seconds, self._say = make, retries, seconds, say
        self._least, self._most = workers
        self._needs: tuple[str, ...] = ()
        self._loaded: dict[str, Any] = {}
        # In the order in which they began.
        self._starting: dict[_Worker, None] = {}
        self._idle: dict[_Worker, None] = {}
        self._running: dict[_Worker, None] = {}
        self._answers: SimpleQueue[tuple[_Worker, Future]] = SimpleQueue()
        self._waiting_since = time.monotonic()

    @property
    def alive(self) -> int:
        """Workers that have loaded what they need."""
        return len(self._idle) + len(self._running)

    def prepare(self, *needs: str) -> dict[str, Any]:
        """Has `needs` loaded by every worker, later ones too, and returns what the first says of them.

        Raises AuditError if none can start, or if two have loaded different things.
        """
        self._needs += needs
        idle, self._idle = self._idle, {}
        for worker in idle:
            self._start(worker)
        self._ready()
        return {name: self._loaded[name] for name in needs}

    def ask(self, method: str, *arguments: Any) -> Any:
        """What any worker answers. Raises what it raises."""
        last = ""
        for _ in range(STARTS):
            worker = self._ready()
            try:
                return ray.get(getattr(worker.actor, method).remote(*arguments))
            except RayTaskError as error:
                raise cause_of(error) from error
            except RayError as error:
                last = reason_of(error)
                del self._idle[worker]
                _kill(worker)
        raise AuditError(f"{STARTS} workers died while asked for their {method}: {last}", kind="worker_died")

    def map(
        self, work: ShardedWork, shards: Sequence[Shard], trace: Callable[[str, str], None] = lambda shard, text: None
    ) -> Iterator[Finished]:
        """(shard, result) of what was finished since the last time, none of it every few seconds: each shard once.

        `trace`: told the shard's name and the traceback of each attempt that raised. Raises AuditError if nothing can
        be worked at all.
        """
        schedule = Schedule(work, shards, self._retries)
        finished: Finished = []
        try:
            while schedule.waiting or self._running:
                self._resize(schedule.waiting)
                while self._idle and (attempt := schedule.take()):
                    self._give(work, attempt)
                # Only now, when nobody waits for work.
                yield finished
                answer = self._answer()
                finished = self._outcome(schedule, trace, *answer) if answer else []
            yield finished
        finally:
            for worker in self._running:
                _kill(worker)
            self._running.clear()

    def close(self) -> None:
        for worker in (*self._starting, *self._idle, *self._running):
            _kill(worker)

    def _resize(self, waiting: int = 0) -> None:
        """As many workers as there is work for; one that has had none for a while may go."""
        size = len(self._starting) + len(self._idle) + len(self._running)
        for _ in range(size, min(self._most, max(self._least, waiting + len(self._running)))):
            self._start(_Worker(self._make()))
        rested = [worker for worker in self._idle if not waiting and time.monotonic() - worker.since > PATIENCE]
        for worker in rested[: max(0, size - self._least)]:
            del self._idle[worker]
            _kill(worker)

    def _ready(self) -> _Worker:
        """A worker that has loaded all it needs."""
        while not self._idle:
            self._resize()
            self._answer()
        return next(iter(self._idle))

    def _start(self, worker: _Worker) -> None:
        """Ray places an actor when it can; nobody waits for it."""
        worker.needs = self._needs
        self._starting[worker] = None
        self._call(worker, "prepare", *self._needs)

    def _give(self, work: ShardedWork, attempt: Attempt) -> None:
        worker, _ = self._idle.popitem()
        worker.attempt, worker.since = attempt, time.monotonic()
        self._running[worker] = None
        self._call(worker, "compute" if attempt.piece else "run", work, attempt.shard)

    def _rest(self, worker: _Worker) -> None:
        worker.attempt, worker.since = None, time.monotonic()
        self._idle[worker] = None

    def _call(self, worker: _Worker, method: str, *arguments: Any) -> None:
        # `ray.wait` looks at every running call each time; this looks at none.
        future = getattr(worker.actor, method).remote(*arguments).future()
        future.add_done_callback(lambda done: self._answers.put((worker, done)))

    def _answer(self) -> tuple[_Worker, Future | None] | None:
        """The next answer to an attempt (none of one that is out of time), or nothing yet: answers to starts go on."""
        oldest = next(iter(self._running), None)
        wait = TICK
        if oldest:
            self._waiting_since = time.monotonic()
            if self._seconds:
                wait = min(wait, oldest.since + self._seconds - time.monotonic())
        try:
            worker, future = self._answers.get(timeout=max(wait, 0))
        except Empty:
            if oldest and self._seconds and time.monotonic() >= oldest.since + self._seconds:
                return oldest, None
            if time.monotonic() - self._waiting_since > PATIENCE:
                self._waiting_since = time.monotonic()
                self._say("waiting for Ray to place a worker")
            return None
        if worker in self._starting:
            self._started(worker, future)
        return (worker, future) if worker in self._running else None

    def _started(self, worker: _Worker, future: Future) -> None:
        del self._starting[worker]
        error = future.exception()
        if error is None:
            for name, loaded in future.result().items():
                first = self._loaded.setdefault(name, loaded)
                if first != loaded:
                    what = f"two workers have loaded different weights of {name}{_difference(first, loaded)}"
                    raise AuditError(what, hint="Are they the same files on every machine?")
            if worker.needs == self._needs:
                self._rest(worker)
            else:
                self._start(worker)
            return
        cause = cause_of(error)
        if isinstance(cause, AuditError):
            raise cause from error
        _kill(worker)
        lost = lost_with_machine(error)
        failed, moved = worker.failed + (not lost), worker.moved + lost
        if failed < STARTS and moved < MOVES:
            self._start(_Worker(self._make(), failed, moved))
            return
        self._most -= 1
        self._least = min(self._least, self._most)
        if not (self._starting or self._idle or self._running):
            hint = "Is there enough memory for `engine.workers` copies of the model?"
            raise AuditError(f"a worker cannot start: {reason_of(error)}", hint=hint, kind="worker_died") from error

    def _outcome(
        self, schedule: Schedule, trace: Callable[[str, str], None], worker: _Worker, future: Future | None
    ) -> Finished:
        attempt = worker.attempt
        assert attempt is not None
        del self._running[worker]
        if future is None:
            _kill(worker)
            return schedule.failed(attempt, "timed_out", f"no result after {self._seconds:g} s")
        error = future.exception()
        if error is None:
            self._rest(worker)
            return schedule.done(attempt, future.result())
        cause = cause_of(error)
        if isinstance(cause, UsageError) or (isinstance(cause, AuditError) and cause.kind == DISK_FULL):
            raise cause from error
        if isinstance(error, RayTaskError):
            self._rest(worker)
            trace(attempt.whole.name, str(error))
            return schedule.failed(attempt, "raised", f"{type(cause).__name__}: {first_line(cause)}")
        _kill(worker)
        if lost_with_machine(error):
            return schedule.moved(attempt, reason_of(error))
        return schedule.failed(attempt, "worker_died", reason_of(error))


def _difference(first: Any, other: Any) -> str:
    """The parts in which two mappings of hashes differ."""
    if not (isinstance(first, Mapping) and isinstance(other, Mapping)):
        return ""
    return f": {', '.join(sorted(part for part in {*first, *other} if first.get(part) != other.get(part)))}"


def _kill(worker: _Worker) -> None:
    with suppress(RayError, ValueError):
        ray.kill(worker.actor)
