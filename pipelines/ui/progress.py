"""Read how far a run is and what it has found so far. The run may be working, on any machine, or may have stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.record.manifest_entries import StageEntry
from audit.schema import VERDICT_WORDS
from audit.verdicts.copies import copied_images
from audit.verdicts.thresholds import COLUMNS, threshold_of_json
from pipelines.console.numbers import rate
from pipelines.runs.status import state, where
from reports.causes import causes_sql
from reports.record.source import Source

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
        stages: Each stage with the rows that it read and wrote, its errors, its seconds and its rate.
        causes: The most frequent causes of errors.
        verdicts: Captions by verdict; empty until the run judges.
        claims: What the run claims, in sentences; empty until it judges.
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
    claims: list[str]
    confirmed: list[dict[str, Any]] | None
    confirmed_count: int

    @property
    def works(self) -> bool:
        """Whether the run may still change."""
        return self.state in ("running", "silent")


def progress(source: Source, ledger: Ledger) -> Progress:
    """Read the progress of a run, whose views and tables are given."""
    manifest, now = source.manifest, source.manifest.progress
    counted = {
        row["verdict"]: row["n"] for row in source.rows("select verdict, count(*) as n from verdicts group by all")
    }
    copied = _copied(ledger, manifest)
    return Progress(
        state=state(manifest),
        sentence=where(manifest),
        done=now.done if now else None,
        total=now.total if now else 0,
        stages=[{"stage": name, "rate": _rate(stage)} | stage.model_dump() for name, stage in manifest.stages.items()],
        causes=source.rows(f"{causes_sql()} limit {SHOWN}"),
        verdicts={word: counted.get(word, 0) for word in VERDICT_WORDS} if counted else {},
        claims=manifest.claims.sentences,
        confirmed=None if copied is None else _confirmed(source, copied),
        confirmed_count=0 if copied is None else len(copied["caption_id"].unique()),
    )


def _rate(stage: StageEntry) -> str:
    return rate(stage.rows_out / stage.seconds) if stage.rows_out and stage.seconds else ""


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


def _confirmed(source: Source, copied: pa.Table) -> list[dict[str, Any]]:
    """Return the most similar confirmed captions with their texts."""
    source.connection.register("copied", copied.drop_columns("region"))
    return source.rows(CONFIRMED, shown=SHOWN)
