"""Locate a run, and list what is stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import fs

from audit import schema
from audit.errors import AuditError, first_line
from audit.record.filesystem import open_filesystem
from audit.record.manifest import NAME, RunManifest, missing, parse
from audit.record.parquet import parquet_dataset, parquet_file

if TYPE_CHECKING:
    import pyarrow.dataset as pads

# The tables of every run. A run that has no part of one has it as an empty table.
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
_COPY_TYPES = {"verbatim": "verbatim", "region": "partial"}  # by the name of the threshold in the manifest


@dataclass(frozen=True)
class StoredRun:
    """Hold the place of a run on any filesystem that pyarrow can open.

    Attributes:
        filesystem: The filesystem.
        root: The folder in it.
        uri: The run as it was given.
    """

    filesystem: fs.FileSystem
    root: str
    uri: str

    def tables(self) -> dict[str, list[fs.FileInfo]]:
        """Return the parts of each table, sorted by path. Temporary files (`_x`, `.x`) are not parts."""
        found: dict[str, list[fs.FileInfo]] = {table: [] for table in SCHEMAS}
        for info in self.filesystem.get_file_info(fs.FileSelector(self.root, recursive=True)):
            table, _, name = info.path.removeprefix(self.root).lstrip("/").partition("/")
            hidden = table.startswith(("_", ".")) or name.startswith(("_", "."))
            if name.endswith(".parquet") and "/" not in name and not hidden and info.is_file:
                found.setdefault(table, []).append(info)
        return {table: sorted(parts, key=lambda info: info.path) for table, parts in sorted(found.items())}

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

    def layout(self, table: str, parts: Sequence[fs.FileInfo]) -> pa.Schema:
        """Return the schema of a table, given its parts. Columns of type float16 are left out.

        The detector columns are those of the first part that has any: a part of captions that failed has none.
        """
        declared = SCHEMAS.get(table)
        if declared is not None and table not in OPEN_SCHEMAS:
            return declared
        found = declared
        for part in parts:
            try:
                read = parquet_file(self.filesystem, part).physical_schema
            except (pa.ArrowException, OSError):
                continue  # a truncated file: reading the table reports it, and `check` names the file
            found = pa.schema([field for field in read if not _is_half(field.type)])
            if table not in OPEN_SCHEMAS or schema.features_of(found):
                break
        return found if found is not None else pa.schema([])

    def dataset(self, table: str, parts: Sequence[fs.FileInfo]) -> pads.Dataset:
        """Return the parts of a table as a dataset with its layout."""
        return parquet_dataset(self.filesystem, parts, self.layout(table, parts))

    def refuse_damaged(self) -> None:
        """Raise an AuditError that names the first damaged part, which explains why something else failed."""
        for part in (part for parts in self.tables().values() for part in parts):
            try:
                parquet_file(self.filesystem, part).ensure_complete_metadata()
            except (pa.ArrowException, OSError) as error:
                hint = "Restore it from a copy, or audit again with another --out; `crossaudit check` names all such "
                hint += "parts."
                what = f"this part of the run is damaged: {first_line(error)}"
                raise AuditError(what, where=part.path, hint=hint) from error


def locate(run: str | Path) -> StoredRun:
    """Locate the run in a local directory or at a URI (s3://, gs://, ...).

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
    return StoredRun(filesystem, root.rstrip("/"), str(run))


def of_manifest(manifest: RunManifest) -> dict[str, pa.Table]:
    """Return the tables that follow from the manifest: `thresholds` and `stages`."""
    thresholds = [
        {
            "embedder": embedder,
            "deciding": embedder == manifest.embedders[0],
            "copy_type": _COPY_TYPES[kind],
            "threshold": entry.value,
            "floor": entry.floor,
            "source": entry.source,
        }
        for embedder, kinds in manifest.thresholds.items()
        for kind, entry in kinds.items()
    ]
    stages = [{"stage": stage, **entry.model_dump()} for stage, entry in manifest.stages.items()]
    return {
        "stages": pa.Table.from_pylist(stages, schema.STAGES),
        "thresholds": pa.Table.from_pylist(thresholds, schema.THRESHOLDS),
    }


def _is_half(type_: pa.DataType) -> bool:
    return bool(pa.types.is_float16(type_) or (pa.types.is_nested(type_) and _is_half(type_.field(0).type)))
