"""Run shards in this process, one after another, without Ray (`engine.workers: 0`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from audit.record.ledger import Shard
from pipelines.console import logs
from pipelines.engine.schedule import Finished, Schedule, ends_run
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import portable


class InProcess:
    """One worker in this process, with the interface of `pipelines.engine.pool.Pool`.

    Shards are retried and split as in a pool. A shard that kills its process kills the run.

    Args:
        worker: The worker, or an object with the same methods.
        retries: How often to retry a failed shard before splitting it.
    """

    alive = 1

    def __init__(self, worker: Any, retries: int) -> None:
        self._worker, self._retries = worker, retries

    def prepare(self, *needs: str) -> dict[str, Any]:
        """Load `needs`, and return what the worker reports about each of them, by name."""
        return self._worker.prepare(*needs)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker and return the result."""
        return getattr(self._worker, method)(*arguments)

    def map(self, step: Step, shards: Sequence[Shard]) -> Iterator[Finished]:
        """Run all shards in order. Each shard is finished exactly once.

        Args:
            step: What to do with a shard.
            shards: The shards.

        Yields:
            The (shard, result) pairs that have finished since the last yield.

        Raises:
            AuditError: Nothing can be processed at all.
        """
        schedule = Schedule(step, shards, self._retries)
        while attempt := schedule.take():
            call = self._worker.compute if attempt.piece else self._worker.run
            try:
                with logs.attempt(step.title, attempt.shard, attempt.number):
                    result = call(step, attempt.shard)
            except Exception as error:
                if ends_run(error):
                    raise
                raised = portable(error)
                yield schedule.failed(attempt, "raised", raised.message, raised.traceback)
            else:
                yield schedule.done(attempt, result)

    def close(self) -> None:
        """Do nothing: the worker ends with this process."""
