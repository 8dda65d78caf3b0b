"""A pool of Ray actors that works shards and loses no row silently.

A shard that fails is tried again a bounded number of times. One that still fails is halved, and its failing halves
again, down to single rows; a row that fails alone is lost, and what it leaves behind (a row of `errors`) takes its
place. Results depend on the shards alone, never on how many actors there are or in which order they finish.

Why not Ray Data: docs/design.md, section 5.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from audit.errors import AuditError, UsageError
from pipelines.ledger import Shard

# So many single rows lost in a row, and nothing done in between, is not bad data but a broken set-up.
BARREN = 20


class Work(Protocol):
    """What one map does, from the driver's side."""

    def lost(self, shard: Shard, kind: str, message: str) -> Any:
        """What a single row that cannot be worked leaves behind; raises AuditError where nothing may be lost."""

    def commit(self, shard: Shard, pieces: list[Any]) -> Any:
        """Writes a shard that came in pieces, in the order of their rows, and returns what `run` would."""


@dataclass
class _Attempt:
    shard: Shard
    whole: Shard
    tries: int = 0


@dataclass
class _Pieces:
    missing: int
    results: dict[int, Any] = field(default_factory=dict)


class Pool:
    """`size` actors made by `make`. Each has `run(work, shard)`, which also writes its result, and
    `compute(work, shard)`, which returns it."""

    def __init__(self, make: Callable[[], Any], size: int, retries: int) -> None:
        self._make, self._retries = make, retries
        self._idle = [make() for _ in range(size)]

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method on all actors. Raises what they raise."""
        calls = [getattr(actor, method).remote(*arguments) for actor in self._idle]
        try:
            return ray.get(calls)
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            raise AuditError(
                f"a worker died while preparing: {_first_line(error)}",
                do="Is there enough memory for `engine.workers` copies of the model?",
            ) from error

    def map(self, work: Work, shards: Iterable[Shard]) -> Iterator[tuple[Shard, Any]]:
        """(shard, result) of each shard, as they finish. Raises AuditError if nothing can be worked at all."""
        waiting = deque(_Attempt(shard, shard) for shard in shards)
        running: dict[Any, tuple[Any, _Attempt]] = {}
        split: dict[str, _Pieces] = {}
        barren = 0
        try:
            while waiting or running:
                while waiting and self._idle:
                    actor, attempt = self._idle.pop(0), waiting.popleft()
                    method = actor.run if attempt.shard is attempt.whole else actor.compute
                    running[method.remote(work, attempt.shard)] = actor, attempt
                (call,), _ = ray.wait(list(running), num_returns=1)
                actor, attempt = running.pop(call)
                result, failure, actor = self._result(call, actor)
                self._idle.append(actor)
                if failure:
                    if self._again(attempt, waiting, split):
                        continue
                    barren += 1
                    if barren == BARREN:
                        raise AuditError(f"{BARREN} rows in a row failed, the last one: {failure[0]}: {failure[1]}")
                    result = work.lost(attempt.shard, *failure)
                    split.setdefault(attempt.whole.name, _Pieces(len(attempt.whole)))
                else:
                    barren = 0
                if attempt.whole.name not in split:
                    yield attempt.whole, result
                    continue
                pieces = split[attempt.whole.name]
                pieces.results[attempt.shard.start] = result
                pieces.missing -= len(attempt.shard)
                if not pieces.missing:
                    del split[attempt.whole.name]
                    yield (
                        attempt.whole,
                        work.commit(attempt.whole, [pieces.results[at] for at in sorted(pieces.results)]),
                    )
        finally:
            for actor, _ in running.values():
                _kill(actor)

    def close(self) -> None:
        for actor in self._idle:
            _kill(actor)

    def _result(self, call: Any, actor: Any) -> tuple[Any, tuple[str, str] | None, Any]:
        """(result, (kind, message) of a failure, the actor to go on with)."""
        try:
            return ray.get(call), None, actor
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, UsageError):
                raise cause from error
            return None, ("raised", f"{type(cause).__name__}: {_first_line(cause)}"), actor
        except RayActorError as error:
            _kill(actor)
            if "creation task" in str(error):
                last = str(error).strip().splitlines()[-1]
                raise AuditError(f"a worker cannot start: {last}", kind="worker_died") from error
            return None, ("worker_died", _death(error)), self._make()

    def _again(self, attempt: _Attempt, waiting: deque[_Attempt], split: dict[str, _Pieces]) -> bool:
        """Queues a failed attempt again, whole or halved; False if it is a single row out of tries.

        Halves are tried once and rows as often as shards, so that one deadly row costs about log2(rows) workers.
        """
        attempt.tries += 1
        half = attempt.shard is not attempt.whole and len(attempt.shard) > 1
        if not half and attempt.tries <= self._retries:
            waiting.appendleft(attempt)
            return True
        if len(attempt.shard) <= 1:
            return False
        split.setdefault(attempt.whole.name, _Pieces(len(attempt.whole)))
        waiting.extendleft(_Attempt(half, attempt.whole) for half in reversed(attempt.shard.halves()))
        return True


def start_ray(address: str | None, workers: int, cpus: int, gpus: float) -> None:
    """A quiet Ray of this machine, or a connection to the cluster at `address`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray tells of dead workers on standard output; the table `errors` tells the same.
    ray._private.worker._worker_logs_enabled = False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    before = os.environ.get("PYTHONPATH")
    # Workers inherit this environment: a checkout that is not installed is importable in them too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))
    try:
        # `address` may also come from RAY_ADDRESS: "local" insists on a Ray of our own.
        ray.init(
            address="local",
            num_cpus=workers * cpus,
            num_gpus=None if gpus else 0,
            include_dashboard=False,
            **quiet,
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _kill(actor: Any) -> None:
    with suppress(RayError, ValueError):
        ray.kill(actor)


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, BaseException) else error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _death(error: RayActorError) -> str:
    """What Ray says about a death, in its own last sentence."""
    text = " ".join(str(error).split())
    return text.partition("Worker exit detail: ")[2].partition(". ")[0] or text[:200]
