"""List what the run read, with what, and how long each stage took."""

from __future__ import annotations

from typing import Literal

from audit.record import manifest_entries
from audit.record.manifest_entries import StageEntry
from reports.record.part import Part
from reports.record.source import Source


class InputFile(Part):
    """An input file. `rows` is None if the run does not know it."""

    kind: Literal["captions", "images", "calibration"]
    file: str
    rows: int | None
    sha256: str


class Provenance(Part):
    """What the run read, with what, and how long each stage took."""

    inputs: list[InputFile]
    models: dict[str, dict[str, str]]
    packages: dict[str, str | None]
    stages: dict[str, StageEntry]


def provenance(source: Source) -> Provenance:
    """Return the inputs with their rows, the models, the packages and the stages."""
    manifest = source.manifest
    images = _images(source)
    return Provenance(
        inputs=[
            InputFile(kind=item.kind, file=item.file, rows=_rows(item, images), sha256=item.sha256)
            for item in manifest.inputs
        ],
        models=manifest.models,
        packages=manifest.packages,
        stages=manifest.stages,
    )


def _rows(item: manifest_entries.InputFile, images: dict[str, int]) -> int | None:
    """Return the rows of an input file: as its header says, as ingest counted, or as many as images were read."""
    if item.rows is not None:
        return item.rows
    if item.slices:
        return sum(rows for rows, *_ in item.slices)
    return images.get(item.name) if item.kind == "images" else None


def _images(source: Source) -> dict[str, int]:
    """Count the images of each file, readable or not."""
    table = f"embeddings_{source.embedder}"
    if not source.rows("select 1 from duckdb_views() where view_name = $table", table=table):
        return {}
    found = source.rows(
        f"""select file, sum(images)::bigint as images from (
                select file, count(*) as images from {table} group by all
                union all
                select file, sum("rows") from errors where stage = 'embed' and "rows" is not null group by all)
            group by all"""
    )
    return {row["file"]: row["images"] for row in found}
