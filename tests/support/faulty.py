"""Change a finished run in memory, as an engine with a fault would have written it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa

from audit.record.manifest import RunManifest
from reports.check import counts


class Faulty:
    """A run whose tables and manifest a test changes.

    Args:
        connection: Has the views of the run.
        tables: The tables that the views read.
        manifest: The manifest of the run.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, tables: dict[str, pa.Table], manifest: RunManifest):
        self.connection, self.tables, self.manifest = connection, dict(tables), manifest.model_copy(deep=True)
        self._sound, self._edited = tables, set[str]()

    def edit(self, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
        self.tables[table] = change(self.tables[table])
        self.connection.register(table, self.tables[table])
        self._edited.add(table)

    def failed(self) -> Iterator[str]:
        """What the check finds, one after the other."""
        found = counts(self.connection, self.manifest)
        return (f"{result.name}: {result.detail}" for result in found if not result.ok)

    def repair(self) -> None:
        """Put the tables back for the next test."""
        for table in self._edited:
            self.connection.register(table, self._sound[table])
