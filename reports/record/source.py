"""Read rows and settings of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb

from audit.record.manifest import RunManifest

# The host of a URL, in lower case; '' if it has none.
HOST = "lower(regexp_extract(url, '^[^:]+://(?:[^/?#]*@)?([^/:?#]+)', 1))"


@dataclass(frozen=True)
class Source:
    """The views of a run, its manifest, and its directory or URI as commands take it."""

    connection: duckdb.DuckDBPyConnection
    manifest: RunManifest
    path: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, with all defaults."""
        return self.manifest.resolved

    @property
    def embedder(self) -> str:
        """The embedder that decides."""
        return self.manifest.embedders[0]

    def threshold(self, kind: str) -> float | None:
        """Return the threshold for a whole image (`verbatim`) or a region (`region`); None if there is none."""
        entry = self.manifest.deciding_thresholds.get(kind)
        return entry.value if entry else None

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Return the result of a query as one dict per row."""
        cursor = self.connection.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
