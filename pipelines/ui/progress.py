"""Read how far a run is and what it has found so far. The run may be working, on any machine, or may have stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.schema import VERDICT_WORDS
from audit.verdicts.copies import copied_images
from audit.verdicts.thresholds import COLUMNS, threshold_of_json
from pipelines.runs.status import state, where
from reports.causes import causes

SHOWN = 50  # confirmed captions, and causes of errors
CONFIRMED = """
with best as (
    select distinct on (caption_id) * from copied
    order by caption_id, copy_type desc, similarity desc nulls last, image_id
)
select caption_id, c.caption, c.row_count, b.copy_type, b.similarity, b.region_similarity
from best b join captions c using (caption_id)
order by b.copy_type desc, b.similarity desc nulls last, caption_id limit $shown
"""


@dataclass(frozen=True)
class Progress:
    """What the first page shows.

    Attributes:
        state: finished, stopped, running, or silent (no sign of life for more than ten minutes).
        sentence: The state in words, with the last progress.
        done: Units of the current step that are done; None without a step.
        total: Units of the current step.
        stages: Each stage with the rows that it read and wrote, its errors and its seconds.
        causes: The most frequent causes of errors.
        verdicts: Captions by verdict; empty until the run judges.
        confirmed: Captions that copied an image, the most similar first; None if nothing can be confirmed yet.
        confirmed_count: Number of all such captions.
    """

    state: str
    sentence: str
    done: int | None
    total: int
    stages: list[dict[str, Any]]
    causes: list[dict[str, Any]]
    verdicts: dict[str, int]
    confirmed: list[dict[str, Any]] | None
    confirmed_count: int

    @property
    def works(self) -> bool:
        """Whether the run may still change."""
        return self.state in ("running", "silent")


def progress(connection: duckdb.DuckDBPyConnection, ledger: Ledger, manifest: RunManifest) -> Progress:
    """Read the progress of a run.

    Args:
        connection: The views of the run.
        ledger: The run.
        manifest: Its manifest.
    """
    counted = connection.execute("select verdict, count(*) from verdicts group by all").fetchall()
    verdicts = {word: dict(counted).get(word, 0) for word in VERDICT_WORDS} if counted else {}
    copied = _copied(ledger, manifest)
    now = manifest.progress
    return Progress(
        state=state(manifest),
        sentence=where(manifest),
        done=now.done if now else None,
        total=now.total if now else 0,
        stages=[{"stage": name} | stage.model_dump() for name, stage in manifest.stages.items()],
        causes=causes(ledger.uri).slice(0, SHOWN).to_pylist(),
        verdicts=verdicts,
        confirmed=None if copied is None else _confirmed(connection, copied),
        confirmed_count=0 if copied is None else len(copied["caption_id"].unique()),
    )


def _copied(ledger: Ledger, manifest: RunManifest) -> pa.Table | None:
    """Return the copies found so far (schema COPIED_IMAGES); None as long as the thresholds are unknown.

    Only `judge` stores them. Before that, they follow from the matches.
    """
    if ledger.parts("copied_images"):
        return ledger.read("copied_images")
    limits = manifest.deciding_thresholds
    if not COLUMNS.keys() <= limits.keys() or not ledger.parts("matches"):
        return None
    chosen = {kind: threshold_of_json(limits[kind].model_dump()) for kind in COLUMNS}
    return copied_images(ledger.read("matches"), manifest.embedders[0], chosen)


def _confirmed(connection: duckdb.DuckDBPyConnection, copied: pa.Table) -> list[dict[str, Any]]:
    """Return the most similar confirmed captions with their texts."""
    connection.register("copied", copied.drop_columns("region"))
    found = connection.execute(CONFIRMED, {"shown": SHOWN}).to_arrow_table()
    return found.to_pylist()
