"""A step of a run, which maps shards to parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from audit.record.ledger import Ledger, Shard, Tables, concat
from pipelines.engine.schedule import unprocessable

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


@dataclass(frozen=True)
class Step:
    """A map of shards to parts.

    Attributes:
        title: The name shown in the progress.
        table: The table whose part marks a shard as done.
        also: Further tables without whose part a shard is not done. Working tables of a finished run are gone, so a
            step may have to be repeated for them although `table` has its part.
        unit: The plural noun for its rows.
        ledger: The run.
        work: Called with a worker and a shard; returns the tables of the shard.
        on_lost_row: Called with the ledger, a shard of one row that cannot be processed, and the kind and message of
            the error. Returns the rows that take its place, in the same tables; `lost` adds the traceback to those of
            `errors`. If None, no row may be lost.
        needs: What workers load first: "model", "reference_model", or embedders by name.
        addition: Whether the result is not part of the audit, so that a finished run stays finished.
    """

    title: str
    table: str
    unit: str
    ledger: Ledger
    work: Callable[[Worker, Shard], Tables]
    on_lost_row: Callable[[Ledger, Shard, str, str], Tables] | None = None
    needs: tuple[str, ...] = ()
    addition: bool = False
    also: tuple[str, ...] = ()

    def done(self) -> set[str]:
        """Return the names of the shards that are done."""
        first, *others = (set(self.ledger.parts(table)) for table in (self.table, *self.also))
        return first.intersection(*others)

    def commit(self, shard: Shard, pieces: list[Tables]) -> dict[str, int]:
        """Write the tables of a shard and return their row counts by table."""
        return self.ledger.commit(shard.name, concat(pieces))

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None = None) -> Tables:
        """Return the rows that take the place of a row that cannot be processed.

        Args:
            shard: A shard of one row.
            kind: The kind of the error.
            message: The message of the error.
            traceback: The traceback of the worker's exception, if it raised one.

        Returns:
            The rows, by the table that they belong to.

        Raises:
            AuditError: No row of this step may be lost.
        """
        if self.on_lost_row is None:
            raise unprocessable(f"{self.title}, shard {shard.name}: {message}", kind, message, traceback)
        tables = self.on_lost_row(self.ledger, shard, kind, message)
        errors = tables["errors"]
        at = errors.schema.get_field_index("traceback")
        column = pa.array([traceback] * len(errors), pa.string())
        return tables | {"errors": errors.set_column(at, errors.schema.field(at), column)}
