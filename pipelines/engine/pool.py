"""Run shards on a pool of Ray actors, which grows and shrinks with the work between a minimum and a maximum size.

`pipelines.engine.schedule` decides what to try next. This module manages the workers: it requests them from Ray without
blocking, gives them shards, and notices when they are lost. Results depend only on the shards, never on the number of
workers or the order in which they finish. docs/decisions/0001-ray-core.md, explains why we do not use Ray Data.
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
from ray.exceptions import RayError

from audit.errors import AuditError
from audit.record.ledger import Shard
from pipelines.engine.failures import lost_with_machine, raised_in_worker, reason_of
from pipelines.engine.schedule import MOVES, Attempt, Finished, Schedule, ShardedWork, ends_run

# How often in a row a worker may fail to start before its slot is given up.
STARTS = 3
# Seconds without any worker before a message says so, seconds without work before an extra worker is released, and
# seconds of work without models before workers let go of their GPUs.
PATIENCE = 60.0
# Seconds after which `map` yields even if nothing has finished.
TICK = 5.0


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor with at most one pending call.

    `loads` is whether it loads models, for which it may hold a GPU. `failed` and `moved` count the failed starts in
    this slot: those of the worker itself, and those of its machine.
    """

    actor: Any
    loads: bool = True
    failed: int = 0
    moved: int = 0
    needs: tuple[str, ...] = ()
    attempt: Attempt | None = None
    since: float = 0.0


class Pool:
    """A pool of actors.

    An actor has the methods `prepare(*needs)`, which loads models and returns their fingerprints by name,
    `run(work, shard, number)`, which writes the result of a shard, and `compute(work, shard, number)`, which returns
    it. `number` counts the attempts at the shard, from 1.

    Args:
        make: Creates an actor.
        workers: Minimum and maximum number of actors.
        retries: How often to retry a failed shard before splitting it.
        seconds: Time limit of an attempt; None for no limit.
        say: Called with a message when the pool is waiting.
        make_light: If actors hold GPUs, creates one that holds none. When no model has been needed for a minute, these
            replace the others until one is needed again.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        workers: tuple[int, int],
        retries: int,
        seconds: float | None = None,
        say: Callable[[str], None] = lambda line: None,
        make_light: Callable[[], Any] | None = None,
    ) -> None:
        self._make, self._make_light = make, make_light
        self._retries, self._seconds, self._say = retries, seconds, say
        self._least, self._most = workers
        self._needs: tuple[str, ...] = ()
        self._loaded: dict[str, Any] = {}
        # Dictionaries as ordered sets: oldest first.
        self._starting: dict[_Worker, None] = {}
        self._idle: dict[_Worker, None] = {}
        self._running: dict[_Worker, None] = {}
        self._answers: SimpleQueue[tuple[_Worker, Future]] = SimpleQueue()
        self._waiting_since = self._needed_at = time.monotonic()
        self._loads = True  # whether new workers load models

    @property
    def alive(self) -> int:
        """Number of workers that have loaded what they need."""
        return len(self._idle) + len(self._running)

    def prepare(self, *needs: str) -> dict[str, Any]:
        """Load `needs` on every worker, including workers started later.

        Returns:
            What the first worker reports about each of `needs`, by name.

        Raises:
            AuditError: No worker can start, or two workers have loaded different weights.
        """
        self._needs += needs
        idle, self._idle = self._idle, {}
        for worker in idle:
            self._start(worker)
        self._ready()
        return {name: self._loaded[name] for name in needs}

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of any worker and return the result. Raises what the method raises."""
        last = ""
        for _ in range(STARTS):
            worker = self._ready()
            try:
                return ray.get(getattr(worker.actor, method).remote(*arguments))
            except RayError as error:
                if (raised := raised_in_worker(error)) is not None:
                    if raised.error is None:
                        raise raised from None
                    raise raised.error from raised
                last = reason_of(error)
                del self._idle[worker]
                _kill(worker)
        raise AuditError(f"{STARTS} workers died during the call `{method}`: {last}", kind="worker_died")

    def map(self, work: ShardedWork, shards: Sequence[Shard]) -> Iterator[Finished]:
        """Run all shards. Each shard is finished exactly once.

        Args:
            work: What to do with a shard.
            shards: The shards.

        Yields:
            The (shard, result) pairs that have finished since the last yield. The list is empty if nothing has finished
            for a few seconds.

        Raises:
            AuditError: Nothing can be processed at all.
        """
        schedule = Schedule(work, shards, self._retries)
        finished: Finished = []
        try:
            while schedule.waiting or self._running:
                self._exchange(bool(work.needs))
                self._resize(schedule.waiting)
                while self._idle and (attempt := schedule.take()):
                    self._give(work, attempt)
                # Yield only now, when no worker is waiting for work.
                yield finished
                answer = self._answer()
                finished = self._outcome(schedule, *answer) if answer else []
            yield finished
        finally:
            for worker in self._running:
                _kill(worker)
            self._running.clear()

    def close(self) -> None:
        """Kill all workers."""
        for worker in (*self._starting, *self._idle, *self._running):
            _kill(worker)

    def _resize(self, waiting: int = 0) -> None:
        """Start as many workers as there is work for, and release extra workers that have been idle for a while."""
        size = len(self._starting) + len(self._idle) + len(self._running)
        for _ in range(size, min(self._most, max(self._least, waiting + len(self._running)))):
            self._start(self._new())
        rested = [worker for worker in self._idle if not waiting and time.monotonic() - worker.since > PATIENCE]
        for worker in rested[: max(0, size - self._least)]:
            del self._idle[worker]
            _kill(worker)

    def _exchange(self, needed: bool) -> None:
        """Replace workers that hold a GPU if models have not been needed for a while, or the other way round."""
        if needed:
            self._needed_at = time.monotonic()
        late = self._make_light is not None and time.monotonic() - self._needed_at > PATIENCE
        self._loads = needed or (self._loads and not late)
        for workers in (self._starting, self._idle):
            for worker in [worker for worker in workers if worker.loads != self._loads]:
                del workers[worker]
                _kill(worker)

    def _ready(self) -> _Worker:
        """Return an idle worker that has loaded all it needs, waiting for one if necessary."""
        self._exchange(needed=True)
        while not self._idle:
            self._resize()
            self._answer()
        return next(iter(self._idle))

    def _new(self, failed: int = 0, moved: int = 0) -> _Worker:
        make = self._make if self._loads or self._make_light is None else self._make_light
        return _Worker(make(), self._loads, failed, moved)

    def _start(self, worker: _Worker) -> None:
        """Start loading on a worker without waiting. Ray places the actor when it can."""
        worker.needs = self._needs if worker.loads else ()
        self._starting[worker] = None
        self._call(worker, "prepare", *worker.needs)

    def _give(self, work: ShardedWork, attempt: Attempt) -> None:
        worker, _ = self._idle.popitem()
        worker.attempt, worker.since = attempt, time.monotonic()
        self._running[worker] = None
        self._call(worker, "compute" if attempt.piece else "run", work, attempt.shard, attempt.number)

    def _rest(self, worker: _Worker) -> None:
        worker.attempt, worker.since = None, time.monotonic()
        self._idle[worker] = None

    def _call(self, worker: _Worker, method: str, *arguments: Any) -> None:
        # Unlike `ray.wait`, a callback does not have to poll every running call.
        future = getattr(worker.actor, method).remote(*arguments).future()
        future.add_done_callback(lambda done: self._answers.put((worker, done)))

    def _answer(self) -> tuple[_Worker, Future | None] | None:
        """Return (worker, future); future is None on timeout. Return None if nothing finished within TICK.

        Answers to starts are handled here.
        """
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
                    raise AuditError(what, hint="Make sure that every machine has the same files.")
            if worker.needs == self._needs or not worker.loads:
                self._rest(worker)
            else:
                self._start(worker)
            return
        raised = raised_in_worker(error)
        if raised is not None and raised.error is not None:
            raise raised.error from raised
        _kill(worker)
        lost = lost_with_machine(error)
        failed, moved = worker.failed + (not lost), worker.moved + lost
        if failed < STARTS and moved < MOVES:
            self._start(self._new(failed, moved))
            return
        self._most -= 1
        self._least = min(self._least, self._most)
        if not (self._starting or self._idle or self._running):
            hint = "Is there enough memory for `engine.workers` copies of the model?"
            what = f"no worker can start: {reason_of(error)}"
            raise AuditError(what, hint=hint, kind="worker_died") from raised or error

    def _outcome(self, schedule: Schedule, worker: _Worker, future: Future | None) -> Finished:
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
        raised = raised_in_worker(error)
        if raised is None:
            _kill(worker)
            if lost_with_machine(error):
                return schedule.moved(attempt, reason_of(error))
            return schedule.failed(attempt, "worker_died", reason_of(error))
        if raised.error is not None and ends_run(raised.error):
            raise raised.error from raised
        self._rest(worker)
        return schedule.failed(attempt, "raised", raised.message, raised.traceback)


def _difference(first: Any, other: Any) -> str:
    """Return the keys at which two mappings of hashes differ, as ": a, b", or "" if they are not mappings."""
    if not (isinstance(first, Mapping) and isinstance(other, Mapping)):
        return ""
    return f": {', '.join(sorted(part for part in {*first, *other} if first.get(part) != other.get(part)))}"


def _kill(worker: _Worker) -> None:
    with suppress(RayError, ValueError):
        ray.kill(worker.actor)
