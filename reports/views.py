"""Open a run as a read-only database with one DuckDB view per table.

See docs/decisions/0008-sql-on-registered-tables.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from audit import schema
from audit.errors import AuditError, first_line
from audit.record.filesystem import open_filesystem
from audit.record.manifest import NAME, RunManifest, missing, parse
from audit.statistics.raters import human_verdicts

# Each of these has a view, which is empty if the run has no such table.
SCHEMAS: dict[str, pa.Schema] = {
    "rows": schema.ROWS,
    "captions": schema.CAPTIONS,
    "caption_groups": schema.CAPTION_GROUPS,
    "control_screen": schema.control_screen(()),
    "control_scores": schema.CONTROL_SCORES,
    "screen": schema.screen(()),
    "scores": schema.SCORES,
    "perturbations": schema.PERTURBATIONS,
    "generations": schema.generations(()),
    "image_clusters": schema.IMAGE_CLUSTERS,
    "inverted_files": schema.INVERTED_FILES,
    "matches": schema.MATCHES,
    "copied_images": schema.COPIED_IMAGES,
    "held_out_pairs": schema.HELD_OUT_PAIRS,
    "evidence": schema.EVIDENCE,
    "verdicts": schema.VERDICTS,
    "errors": schema.ERRORS,
    "mitigation": schema.MITIGATION,
    "mitigation_summary": schema.MITIGATION_SUMMARY,
    "review_pairs": schema.REVIEW_PAIRS,
    "reviews": schema.REVIEWS,
}
# The detector columns of these tables differ from run to run, so their schema is read from the files.
OPEN_SCHEMAS = ("control_screen", "screen", "generations")


@dataclass(frozen=True)
class StoredRun:
    """Locate the directory of a run on any filesystem that pyarrow can open."""

    filesystem: fs.FileSystem
    root: str

    def tables(self) -> dict[str, list[str]]:
        """Return the sorted paths of the parts of each table. Temporary files (`_x`, `.x`) are not parts."""
        found: dict[str, list[str]] = {}
        for info in self.filesystem.get_file_info(fs.FileSelector(self.root, recursive=True)):
            table, _, name = info.path.removeprefix(self.root).lstrip("/").partition("/")
            hidden = table.startswith(("_", ".")) or name.startswith(("_", "."))
            if name.endswith(".parquet") and "/" not in name and not hidden and info.is_file:
                found.setdefault(table, []).append(info.path)
        return {table: sorted(paths) for table, paths in sorted(found.items())}

    def manifest(self) -> RunManifest:
        """Return the content of manifest.json. Raises AuditError if it is missing, damaged or not that of a run."""
        path = f"{self.root}/{NAME}"
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            raise missing(self.root)
        try:
            with self.filesystem.open_input_stream(path) as file:
                content = file.read()
        except OSError as error:
            hint = "Check its permissions."
            raise AuditError(f"cannot be read: {first_line(error)}", where=path, hint=hint) from error
        return parse(content, path)


def open_run(run: str | Path) -> StoredRun:
    """Open the run in a local directory or at a URI (s3://, gs://, ...).

    Raises AuditError if there is no such directory.
    """
    filesystem, root = open_filesystem(run)
    try:
        kind = filesystem.get_file_info(root).type
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "Check the path and its permissions; for s3:// also the AWS_ variables (keys, region, endpoint)."
        raise AuditError(f"cannot be opened: {first_line(error)}", where=str(run), hint=hint) from error
    if kind != fs.FileType.Directory:
        raise AuditError(
            "no such directory", where=str(run), hint="Give the directory of a run: the `out` of audit.yaml."
        )
    return StoredRun(filesystem, root.rstrip("/"))


@contextmanager
def connect(run: str | Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection that can read only the tables of a run and leaves no files behind.

    Data that does not fit into memory spills to a temporary folder, which is deleted afterwards. (By default, DuckDB
    uses `.tmp` in the working directory and lets every statement write there.) The views of `embeddings_*` lack the
    column `vector`, because DuckDB 2.0 cannot read Arrow's float16.
    """
    located = open_run(run)
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        tables = located.tables()
        for table in sorted({*SCHEMAS, *tables}):
            paths = tables.get(table, [])
            layout = _schema(located, table, paths)
            view = ds.dataset(paths, layout, "parquet", located.filesystem) if paths else layout.empty_table()
            connection.register(table, view)
        settings = {"temp_directory": folder, "enable_external_access": "false", "lock_configuration": "true"}
        for setting, value in settings.items():
            connection.execute(f"set {setting} = '{value}'")
        try:
            connection.register("human_verdicts", _human_verdicts(connection))
            yield connection
        except (AuditError, duckdb.Error, pa.ArrowException, OSError):
            _refuse_damaged(located, tables)
            raise


def _human_verdicts(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Compute what raters decide on confirmed captions. It is stored nowhere, so it cannot differ from the answers."""
    pairs = connection.sql("select pair, pair_type, caption_id from review_pairs").to_arrow_table()
    reviews = connection.sql("select rater, pair, answer from reviews").to_arrow_table()
    return human_verdicts(pairs, reviews)


def _refuse_damaged(run: StoredRun, tables: dict[str, list[str]]) -> None:
    """Raise an AuditError that names the first damaged part, which explains why something else failed."""
    for path in (path for paths in tables.values() for path in paths):
        try:
            pq.read_metadata(path, filesystem=run.filesystem)
        except (pa.ArrowException, OSError) as error:
            hint = "Restore it from a copy, or audit again with another --out; `crossaudit check` names all such parts."
            raise AuditError(f"this part of the run is damaged: {first_line(error)}", where=path, hint=hint) from error


def _schema(run: StoredRun, table: str, paths: list[str]) -> pa.Schema:
    if table in SCHEMAS and table not in OPEN_SCHEMAS:
        return SCHEMAS[table]
    for path in paths:
        try:
            found = pq.read_schema(path, filesystem=run.filesystem)
        except (pa.ArrowException, OSError):
            continue  # a truncated file: reading the view reports it, and `check` names the file
        return pa.schema([field for field in found if not _is_half(field.type)])
    return SCHEMAS.get(table, pa.schema([]))


def _is_half(type_: pa.DataType) -> bool:
    return bool(pa.types.is_float16(type_) or (pa.types.is_nested(type_) and _is_half(type_.field(0).type)))
