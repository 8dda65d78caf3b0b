"""Read a screen table of the control captions that `audit.screen` or an earlier run has computed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.detectors import COMBINED, SCREEN, columns_of
from audit.duplicates.captions import caption_id
from audit.errors import AuditError
from audit.record.filesystem import open_file
from audit.schema import METADATA_KEY
from pipelines.reading.files import find

HINT = "Leave calibration.screen out: the run then makes its own."


def check(path: str, detector: str, seeds: Sequence[int]) -> None:
    """Check the columns and the seeds of a screen table, reading only the schemas of its files.

    Args:
        path: A Parquet file, or a folder of them, such as `control_screen` or `screen` of a run.
        detector: The detector that ranks the captions.
        seeds: The configured `screen.seeds`.

    Raises:
        AuditError: Columns or the schema metadata are missing, or the seeds differ. The error names what is wrong.
    """
    for layout in (_schema(uri) for uri in files(path)):
        # An unknown detector is reported where detectors are checked.
        parts = [part for part in COMBINED.get(detector, (detector,)) if part in SCREEN]
        wanted = ["seed", "status", *(name for part in parts for name in columns_of(part))]
        missing = [name for name in dict.fromkeys(wanted) if name not in layout.names]
        if "caption" not in layout.names and "caption_id" not in layout.names:
            missing.insert(0, "caption (or caption_id)")
        if missing:
            raise AuditError(
                f"calibration.screen has no column {', '.join(missing)}; there is: {', '.join(layout.names)}",
                where=path,
                hint=f"Give a table that was screened with the detector {detector!r}, or leave calibration.screen out.",
            )
        content = (layout.metadata or {}).get(METADATA_KEY)
        if content is None:
            what = "calibration.screen does not say what it depends on (no schema metadata 'crossaudit')"
            raise AuditError(what, where=path, hint=HINT)
        found = json.loads(content).get("seeds")
        if found is not None and list(found) != list(seeds):
            what = f"calibration.screen has the seeds {list(found)}, screen.seeds are {list(seeds)}"
            raise AuditError(what, where=path, hint=HINT)


def read(path: str, captions: Sequence[str]) -> pa.Table:
    """Read the rows of the given captions from a screen table: one per caption and seed, in the order of `captions`.

    The result has the column `caption`. A table from an earlier run may identify captions only by `caption_id`, and may
    lack some of them.

    Raises:
        AuditError: A file cannot be read.
    """
    try:
        tables = []
        for uri in files(path):
            with open_file(uri) as source:
                tables.append(pq.read_table(source))
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise AuditError(f"cannot be read: {error}", where=path, hint=HINT) from error
    by_text = "caption" in table.column_names
    keys = pa.array(captions if by_text else [caption_id(text) for text in captions], pa.string())
    key_R = table["caption" if by_text else "caption_id"]
    at_R = pc.index_in(key_R, value_set=keys).to_pylist()
    once = {
        (at, seed): row
        for row, (at, seed) in enumerate(zip(at_R, table["seed"].to_pylist(), strict=True))
        if at is not None
    }
    chosen = [once[key] for key in sorted(once)]  # duplicate rows are taken once
    texts = pa.array([captions[at] for at, _ in sorted(once)], pa.string())
    table = table.take(pa.array(chosen, pa.int64()))
    kept = [name for name in table.column_names if name not in ("caption", "caption_id", "caption_group")]
    return table.select(kept).add_column(0, "caption", texts)


def files(path: str) -> list[str]:
    """List the Parquet files of a screen table, which is one file or a folder."""
    return [file.uri for file in find(path, "calibration.screen")]


def _schema(uri: str) -> pa.Schema:
    try:
        with open_file(uri) as source:
            return pq.read_schema(source)
    except pa.ArrowException as error:
        raise AuditError(f"cannot be read: {error}", where=uri, hint=HINT) from error
