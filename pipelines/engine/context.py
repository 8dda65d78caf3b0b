"""The context that stages run in: configuration, tables, manifest, progress, and a pool of workers on demand."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard
from audit.record.manifest import StageEntry
from pipelines.configuration.config import Config
from pipelines.console import logs
from pipelines.console.progress import Reporter
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import text_of

if TYPE_CHECKING:
    from pipelines.engine.in_process import InProcess
    from pipelines.engine.pool import Pool

MODELS = ("model", "reference_model")

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One audit in progress.

    As a context manager, it makes this process the only writer of the run, and records the beginning and the end in the
    manifest.

    Attributes:
        config: The configuration.
        ledger: The tables.
        manifest: The manifest.
        progress: Where to show progress.
        log_level: The lowest level that the driver and the workers log to RUN/logs; None for no logs.
    """

    config: Config
    ledger: Ledger
    manifest: Manifest
    progress: Reporter
    log_level: str | None = None
    _pool: Pool | InProcess | None = field(default=None, repr=False)
    _loaded: set[str] = field(default_factory=set, repr=False)
    _owner: Owner | None = field(default=None, repr=False)
    _log: logs.RunLog | None = field(default=None, repr=False)

    def __enter__(self) -> Run:
        """Take ownership of the run. Raises AuditError if another process is writing to it."""
        self._owner = Owner(self.ledger).__enter__()
        try:
            self.manifest.reload()  # the previous writer may have ended since the manifest was opened
            self.ledger.sweep()
            self.manifest.begin()
        except BaseException:
            self._owner.__exit__()
            raise
        if self.log_level is not None:
            self._log = logs.RunLog(self.ledger, "driver", self.log_level)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            logger.error("the run failed: %s\n%s", error, text_of(error))
        try:
            self.manifest.end(error)
        except (AuditError, OSError):
            if error is None:  # otherwise the first error is the one to report
                raise
        finally:
            self.close()
            if self._log is not None:
                self._log.close()
                self._log = None
            if self._owner is not None:
                self._owner.__exit__()

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[StageEntry]:
        """Show a stage and record it in the manifest.

        Args:
            name: The name of the stage.
            unit: The plural noun for its input rows.

        Yields:
            Its entry in the manifest. The caller sets rows_in and rows_out.
        """
        with self.progress.stage(name, unit) as shown:
            with self.manifest.stage(name) as entry:
                yield entry
            shown.rows, shown.errors = entry.rows_in, entry.errors

    def finish(self) -> None:
        """Mark the run as finished, and remove its working tables unless they are to be kept.

        The run is finished before they are removed. If this process is killed in between, a rerun removes them.
        """
        self.manifest.finish()
        if not self.config.engine.keep_work:
            self.ledger.remove_work()

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        """Run a step on the shards that have no part yet."""
        done = step.done()
        todo = [shard for shard in shards if shard.name not in done]
        if not shards:
            return
        total, left = sum(map(len, shards)), sum(map(len, todo))
        if not todo:
            self.progress.skip(step.title, total, step.unit)
            return
        if not step.addition:
            self.manifest.reopen()
        pool = self.workers(step.needs)
        with logs.about(step.title), self.progress.step(step.title, total, step.unit, total - left) as count:
            for finished in pool.map(step, todo):
                if self._owner is not None:
                    self._owner.check()
                for shard, counts in finished:
                    for table, rows in counts.items():
                        if table != "errors":
                            self.manifest.part(table, shard.name, rows)
                    count.advance(len(shard), counts.get("errors", 0))
                count.workers = pool.alive
                self.manifest.progress(count.numbers)
        self._describe(step.needs)
        if errors := count.numbers().errors:
            self.progress.say(f"{step.title}: {errors:,} errors; `crossaudit errors {self.ledger.uri}` shows why")

    def workers(self, needs: Sequence[str] = ()) -> Pool | InProcess:
        """Return the pool, with `needs` loaded on every worker. Starts the pool on the first call."""
        if self._pool is None:
            self._pool = _start(self.config, self.progress, self.log_level)
        missing = tuple(name for name in needs if name not in self._loaded)
        if missing:
            with self.progress.waiting(f"loading {', '.join(missing)}"):
                loaded = self._pool.prepare(*missing)
            for name, sha256 in loaded.items():
                self.manifest.model(name, sha256)
            self._describe(missing)
            self._loaded.update(missing)
        return self._pool

    def _describe(self, names: Sequence[str]) -> None:
        """Record what a worker says about the models among `names`."""
        if self._pool is not None and (models := [name for name in names if name in MODELS]):
            for name, about in self._pool.ask("about", models).items():
                self.manifest.checkpoint(name, about)

    def close(self) -> None:
        """Stop the workers and Ray."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
            if self.config.engine.workers.max:
                from pipelines.engine.ray_session import stop_ray

                stop_ray()


def _start(config: Config, progress: Reporter, log_level: str | None) -> Pool | InProcess:
    engine, workers = config.engine, config.engine.workers
    if workers.max == 0:
        from pipelines.engine.in_process import InProcess
        from pipelines.engine.worker import Worker

        return InProcess(Worker(config, own_process=False), engine.retries)

    # Ray prints on standard output when a worker dies, even with log_to_driver=False; the table `errors` and the logs
    # say the same. Ray reads this variable when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    import ray

    from pipelines.engine.pool import Pool
    from pipelines.engine.ray_session import start_ray
    from pipelines.engine.remote_worker import RemoteWorker

    many = f"{workers.max}" if workers.min == workers.max else f"{workers.min} to {workers.max}"
    what = f"{many} worker{'s' * (workers.max != 1)}"
    with progress.waiting(f"starting {what}" if engine.address is None else f"connecting to {engine.address}"):
        start_ray(engine.address, workers.max, engine.cpus_per_worker, engine.gpus_per_worker)

    def make(gpus: float) -> Any:
        options = {"num_cpus": engine.cpus_per_worker, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        return ray.remote(RemoteWorker).options(**options).remote(config, log_level)

    return Pool(
        partial(make, engine.gpus_per_worker),
        (workers.min, workers.max),
        engine.retries,
        engine.shard_timeout_s,
        progress.say,
        partial(make, 0) if engine.gpus_per_worker else None,
    )
