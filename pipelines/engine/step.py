"""One step of a run: a function from shards to parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, concat

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


@dataclass(frozen=True)
class Step:
    """One map of shards to parts.

    `work(worker, shard)` gives the tables of a shard; the first of them has the name `table` and says that it is done.
    `left(ledger, shard, kind, message)` gives what a row that cannot be worked leaves behind, in the same tables.
    `needs`: what workers load before ("model", embedders by name). `addition`: what it makes is no part of the audit,
    so a finished run stays finished.
    """

    title: str
    table: str
    unit: str
    ledger: Ledger
    work: Callable[[Worker, Shard], Tables]
    left: Callable[[Ledger, Shard, str, str], Tables] | None = None
    needs: tuple[str, ...] = ()
    addition: bool = False

    def commit(self, shard: Shard, pieces: list[Tables]) -> dict[str, int]:
        return self.ledger.commit(shard.name, concat(pieces))

    def lost(self, shard: Shard, kind: str, message: str) -> Tables:
        if self.left is None:
            raise AuditError(f"{self.title}, shard {shard.name}: {message}", kind=kind)
        return self.left(self.ledger, shard, kind, message)
