"""Change tables and the manifest of a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def change_table(run: Path, table: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change each row of a table. A row for which `change` returns None is removed."""
    for path in sorted((run / table).glob("*.parquet")):
        found = pq.read_table(path)
        rows = [new for row in found.to_pylist() if (new := change(row)) is not None]
        pq.write_table(pa.Table.from_pylist(rows, found.schema), path)


def change_manifest(run: Path, **values: object) -> None:
    """Set values of the manifest. The names are paths: `resolved__generate__steps=3`."""
    path = run / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))
