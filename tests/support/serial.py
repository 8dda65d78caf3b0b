"""A run whose steps are worked here and now, one shard after the other."""

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
    """`halved`: every shard in two pieces, as one that failed would be."""

    halved: bool = False

    def execute(self, step: Step, shards: Sequence[Shard]) -> None:
        worker, done = Worker(self.config), set(self.ledger.parts(step.table))
        for shard in shards:
            if shard.name not in done:
                pieces = [piece for piece in shard.halves() if len(piece)] if self.halved else [shard]
                step.commit(shard, [worker.compute(step, piece) for piece in pieces])


def serial(config: Config, halved: bool = False) -> Serial:
    ledger = Ledger(config.out)
    return Serial(config, ledger, Manifest.open(ledger, config, {}), Reporter(), halved=halved)
