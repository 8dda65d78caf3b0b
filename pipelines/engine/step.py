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

    Attributes:
        title: Its name in the progress.
        table: The table whose part says that a shard is done.
        unit: What a row is, in the plural.
        ledger: The run.
        work: Called with a worker and a shard; returns the tables of the shard.
        on_lost_row: Called with the ledger, a shard of one row that cannot be processed, the kind of the error and its
            message; returns the rows that take its place, in the same tables. Without it no row may be lost.
        needs: What workers load first: "model", "reference_model", or embedders by name.
        addition: Whether the result is no part of the audit, so that a finished run stays finished.
    """

    title: str
    table: str
    unit: str
    ledger: Ledger
    work: Callable[[Worker, Shard], Tables]
    on_lost_row: Callable[[Ledger, Shard, str, str], Tables] | None = None
    needs: tuple[str, ...] = ()
    addition: bool = False

    def commit(self, shard: Shard, pieces: list[Tables]) -> dict[str, int]:
        return self.ledger.commit(shard.name, concat(pieces))

    def lost(self, shard: Shard, kind: str, message: str) -> Tables:
        if self.on_lost_row is None:
            raise AuditError(f"{self.title}, shard {shard.name}: {message}", kind=kind)
        return self.on_lost_row(self.ledger, shard, kind, message)
