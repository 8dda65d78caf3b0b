"""The context that stages run in: configuration, tables, manifest, progress, and a pool of workers on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import StepLog

if TYPE_CHECKING:
    from pipelines.engine.pool import Pool

MODELS = ("model", "reference_model")


@dataclass
class Run:
    """One audit in progress.

    As a context manager, it makes this process the only writer of the run, and records the beginning and the end in the
    manifest.
    """

    config: Config
    ledger: Ledger
    manifest: Manifest
    progress: Reporter
    _pool: Pool | None = field(default=None, repr=False)
    _loaded: set[str] = field(default_factory=set, repr=False)
    _owner: Owner | None = field(default=None, repr=False)

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
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.manifest.end(error)
        except (AuditError, OSError):
            if error is None:  # otherwise the first error is the one to report
                raise
        finally:
            self.close()
            if self._owner is not None:
                self._owner.__exit__()

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[dict[str, Any]]:
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
            shown.rows, shown.errors = entry["rows_in"], entry["errors"]

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        """Run a step on the shards that have no part yet."""
        done = set(self.ledger.parts(step.table))
        todo = [shard for shard in shards if shard.name not in done]
        if not shards:
            return
        total, left = sum(map(len, shards)), sum(map(len, todo))
        if not todo:
            self.progress.skip(step.title, total, step.unit)
            return
        if not step.addition:
            self.manifest.reopen()
        log = StepLog(self.ledger, step.title)
        try:
            self._map(step, todo, total, total - left, log)
        except AuditError as error:
            raise log.naming(error) from error
        if log.note:
            self.progress.say(f"{step.title}: {log.note}")

    def _map(self, step: Step, todo: Sequence[Shard], total: int, done: int, log: StepLog) -> None:
        """Run a step on the shards in `todo`. `total` and `done` count rows."""
        pool = self.workers(step.needs)
        with self.progress.step(step.title, total, step.unit, done) as count:
            for finished in pool.map(step, todo, log.add):
                if self._owner is not None:
                    self._owner.check()
                for shard, counts in finished:
                    for table, rows in counts.items():
                        if table != "errors":
                            self.manifest.part(table, shard.name, rows)
                    count.advance(len(shard), counts.get("errors", 0))
                count.workers = pool.alive
                self.manifest.progress(count.numbers)

    def workers(self, needs: Sequence[str] = ()) -> Pool:
        """Return the pool, with `needs` loaded on every worker. Starts the pool on the first call."""
        if self._pool is None:
            self._pool = _start(self.config, self.progress)
        missing = tuple(name for name in needs if name not in self._loaded)
        if missing:
            with self.progress.waiting(f"loading {', '.join(missing)}"):
                loaded = self._pool.prepare(*missing)
            for name, sha256 in loaded.items():
                self.manifest.model(name, sha256)
            if models := [name for name in missing if name in MODELS]:
                for name, about in self._pool.ask("about", models).items():
                    self.manifest.checkpoint(name, about)
            self._loaded.update(missing)
        return self._pool

    def close(self) -> None:
        """Stop the workers and Ray."""
        if self._pool is not None:
            from pipelines.engine.ray_session import stop_ray

            self._pool.close()
            stop_ray()
            self._pool = None


def _start(config: Config, progress: Reporter) -> Pool:
    import ray

    from pipelines.engine.pool import Pool
    from pipelines.engine.ray_session import start_ray
    from pipelines.engine.worker import Worker

    engine, workers = config.engine, config.engine.workers
    many = f"{workers.max}" if workers.min == workers.max else f"{workers.min} to {workers.max}"
    what = f"{many} worker{'s' * (workers.max != 1)}"
    with progress.waiting(f"starting {what}" if engine.address is None else f"connecting to {engine.address}"):
        start_ray(engine.address, workers.max, engine.cpus_per_worker, engine.gpus_per_worker)
    actor = ray.remote(Worker).options(
        num_cpus=engine.cpus_per_worker, num_gpus=engine.gpus_per_worker, max_restarts=0, max_task_retries=0
    )
    limits = workers.min, workers.max
    return Pool(lambda: actor.remote(config), limits, engine.retries, engine.shard_timeout_s, progress.say)
