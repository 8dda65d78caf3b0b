"""The Ray actor around a worker: it logs to RUN/logs, and its exceptions reach the driver with their traceback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from audit.record.ledger import Shard, Tables
from pipelines.configuration.config import Config
from pipelines.console import logs
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import portable_errors
from pipelines.engine.worker import Result, Worker


class RemoteWorker:
    """A worker in a process of its own. Its methods are those of `Worker`, and raise only WorkerError.

    Args:
        config: The configuration of the run.
        log_level: The lowest level that is logged to RUN/logs; None for no log.
    """

    def __init__(self, config: Config, log_level: str | None = None) -> None:
        self._worker = Worker(config)
        if log_level is not None:
            logs.RunLog(self._worker.ledger, "worker", log_level)

    @portable_errors
    def prepare(self, *needs: str) -> dict[str, dict[str, str]]:
        """Load models and return their fingerprints by name."""
        return self._worker.prepare(*needs)

    @portable_errors
    def about(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what the manifest records about models, by name."""
        return self._worker.about(names)

    @portable_errors
    def context(self) -> bytes:
        """Return the serialized schema of `screen`."""
        return self._worker.context()

    @portable_errors
    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function with the worker and the arguments, and return its result."""
        return self._worker.call(function, *arguments)

    @portable_errors
    def run(self, step: Step, shard: Shard, number: int) -> dict[str, int]:
        """Process a shard and write its tables. `number` counts the attempts, from 1."""
        with logs.attempt(step.title, shard, number):
            return self._worker.run(step, shard)

    @portable_errors
    def compute(self, step: Step, shard: Shard, number: int) -> Tables:
        """Process a piece of a shard and return its tables. `number` counts the attempts, from 1."""
        with logs.attempt(step.title, shard, number):
            return self._worker.compute(step, shard)
