"""Run steps in the test process, one shard after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.record.ledger import Ledger, Shard
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.step import Step
from pipelines.engine.worker import Worker


@dataclass
class Serial(Run):
    """A run that executes its steps in this process, without Ray.

    Attributes:
        halved: Whether to compute every shard in two halves, as a failed shard is.
    """

    halved: bool = False

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        """Compute and write the shards that are not yet written."""
        worker, done = Worker(self.config), step.done()
        for shard in shards:
            if shard.name not in done:
                pieces = [piece for piece in shard.halves() if len(piece)] if self.halved else [shard]
                step.commit(shard, [worker.compute(step, piece) for piece in pieces])


def serial(config: Config, halved: bool = False) -> Serial:
    """Return a serial run of a configuration."""
    ledger = Ledger(config.out)
    return Serial(config, ledger, Manifest.open(ledger, config, {}), Reporter(), halved=halved)
