"""Define the record of a run. Its JSON schema is reports/record/record.schema.json.

Similarities are cosine similarities of the deciding embedder. Shares are from 0 to 1, times in seconds.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import ConfigDict

from audit.record.manifest_entries import (
    CalibrationEntry,
    ClaimsEntry,
    ClustersEntry,
    ConfirmErrorEntry,
    InvertedFileEntry,
    PairCounts,
    SelectionEntry,
    ThresholdEntry,
)
from reports.record.answer import Answer
from reports.record.captions import Confirmed, Family, SelectedCaption, VerdictCount
from reports.record.cases import Case
from reports.record.commands import NextStep
from reports.record.funnel import FunnelStep
from reports.record.histograms import Histogram, HistogramName
from reports.record.mitigation import Mitigation
from reports.record.part import Part
from reports.record.provenance import Provenance
from reports.record.review import HumanVerdict, Review

VERSION: Literal["1"] = "1"


class RunInfo(Part):
    """The run: where it is, what it audited, and when. `id` is a UUID that tells runs apart wherever they are."""

    id: str
    path: str
    title: str
    model: str
    started: str
    finished: str | None
    crossaudit: str | None
    device: str
    dtype: str | None
    shows_training_images: bool
    pictures_removed: str | None  # when `crossaudit purge` removed pictures, in words


class WaiverNote(Part):
    """Why a copy is acceptable, and who answers for that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    covers: str
    reason: str
    owner: str
    expires: date


class Failure(Part):
    """Failures with the same cause (`crossaudit errors`). `rows` is None if their number is unknown."""

    stage: str
    kind: str
    cause: str
    errors: int
    rows: int | None
    message: str | None  # of one example


class NotAudited(Part):
    """What could not be audited, or was left out."""

    failures: list[Failure]
    sampled_out: int
    pairs: PairCounts | None


class Method(Part):
    """How the run was done, as its manifest says.

    Attributes:
        uncalibrated: Detectors of the run that are uncalibrated evidence: they read attention, and how well they
            tell memorized captions was not measured on planted models of the audited model's family.
    """

    settings: dict[str, Any]
    uncalibrated: list[str]
    embedder: str
    resolution: str | None
    calibration: CalibrationEntry
    thresholds: dict[str, ThresholdEntry]
    confirm_error: ConfirmErrorEntry | None
    selection: SelectionEntry | None
    clusters: ClustersEntry | None
    index: dict[str, InvertedFileEntry]


class Record(Part):
    """Everything that a report shows about a run.

    Attributes:
        claims: What the audit claims about all captions, with percentages in its sentences.
        limits: What the report does not show.
        histograms: `scores` of all captions, confirmed and control captions, and `similarities`; absent if unknown.
        selected: The captions that were looked at, the most serious first; at most MAX_SELECTED of `selected_count`.
        families: The families of the confirmed captions, the most serious first.
        cases: Confirmed captions with images, the most serious first, at most PER_FAMILY per family.
        near_misses: Number of unconfirmed captions that look like copies to the embedder, below the threshold.
        nearest_misses: The unconfirmed captions that come closest to a threshold, as caption_ids.
    """

    version: Literal["1"] = VERSION
    run: RunInfo
    answer: Answer
    claims: ClaimsEntry
    limits: list[str]
    funnel: list[FunnelStep]
    verdicts: list[VerdictCount]
    confirmed: Confirmed
    histograms: dict[HistogramName, Histogram]
    selected_count: int
    selected: list[SelectedCaption]
    families: list[Family]
    cases: list[Case]
    near_misses: int
    nearest_misses: list[str]
    not_audited: NotAudited
    mitigation: Mitigation | None
    review: Review | None
    human_verdicts: dict[str, HumanVerdict]  # by caption_id
    waivers: dict[str, WaiverNote]  # by caption_id
    next_steps: list[NextStep]
    method: Method
    provenance: Provenance
