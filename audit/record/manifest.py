"""Define RUN/manifest.json as a model, and read it. The file may be damaged or come from another program.

Fields with a default are absent from the file until they are known. docs/reference/manifest.md explains all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from audit.errors import AuditError

NAME = "manifest.json"
_RUN = "Give the folder of a run: its `out`."


class _Entry(BaseModel):
    """A part of the manifest. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class InputFile(_Entry):
    """An input file, its fingerprint, and for captions its slices (number of rows, then where they are)."""

    kind: Literal["captions", "images", "calibration"]
    rows: int | None
    file: str
    name: str
    sha256: str
    slices: list[list[int]] = []


class Checkpoint(_Entry):
    """The sampling parameters of a model, its scheduler, and the files of its folder that are not read."""

    sampling: dict[str, Any]
    scheduler: dict[str, Any] = {}
    files_not_read: list[str] = []


class RunSeeds(_Entry):
    """The seeds of the stages, of the audit sample, and of the sample of rows."""

    screen: list[int]
    generate: list[int]
    fresh: list[int]
    sample: int
    captions: int


class CalibrationEntry(_Entry):
    """How many control captions there are, what they are for, and why the q-values are there or not."""

    removed: int = 0
    control_captions: int = 0
    detector: str = ""
    fit: int = 0
    held_out: int = 0
    q_unseen: str = ""


class ExcludedControl(_Entry):
    """A control caption that really reproduces a training image (`audit.verdicts.control_captions.Control`)."""

    caption_id: str
    caption: str
    similarity: float
    image_id: str
    seeds_alike: int
    seeds: int
    next_similarity: float | None
    p: float | None
    reasons: list[str]


class TailEntry(_Entry):
    """The normal distribution of Fisher's z (`audit.verdicts.control_captions.Tail`)."""

    mean: float
    deviation: float
    controls: int


class ThresholdEntry(_Entry):
    """The similarity at which an image counts as copied (`audit.verdicts.thresholds.Threshold`)."""

    value: float | None
    source: Literal["controls", "floor", "configured", "missing"]
    embedder: str
    kind: str
    floor: float | None
    floor_source: str | None
    rate: float | None
    controls: int
    used: int
    without: int
    beyond: int
    excluded: list[ExcludedControl]
    tail: TailEntry | None
    notes: list[str]


class ByChance(_Entry):
    """How many control captions the thresholds confirm, and what that means for the generated captions."""

    controls: int
    confirmed: int
    captions: int
    expected: float | None
    high: float | None


class Proportion(_Entry):
    """`k` of `n` sampled captions, with an interval; `undetermined` of them have no verdict."""

    k: int
    n: int
    undetermined: int
    low: float
    high: float


class MissedCaptions(Proportion):
    """The same for the captions that the screen left out, and as numbers of captions."""

    captions: int
    low_captions: int
    high_captions: int


class FoundShare(_Entry):
    """The share of all reproducing captions that are among those that the screen selected."""

    found: int
    low: float
    estimate: float
    high: float


class ClaimsEntry(_Entry):
    """What the audit claims about all captions (`audit.statistics.claims`)."""

    confidence: float = 0.0
    captions: int = 0
    prevalence: Proportion | None = None
    prevalence_verbatim: Proportion | None = None
    missed: MissedCaptions | None = None
    recall: FoundShare | None = None
    sentences: list[str] = []


class SelectionEntry(_Entry):
    """How many captions were selected by score, by duplicates and at random, of all captions."""

    budget: int
    by_duplicates: int
    audit_sample: int
    captions: int


class ClustersEntry(_Entry):
    """From which similarity on images are near duplicates, and with `index.type: ivf` how many of them were found."""

    threshold: float
    source: str
    images_with_duplicates: int
    recall: float | None = None
    images: int | None = None
    pairs: int | None = None


class InvertedFileEntry(_Entry):
    """How often an inverted file finds the nearest image."""

    recipe: str
    queries: int
    recall_at_1: float | None


class StageEntry(_Entry):
    """What a stage read, wrote and lost, and how long it took."""

    rows_in: int = 0
    rows_out: int = 0
    errors: int = 0
    seconds: float = 0.0


class PairCounts(_Entry):
    """How many rows are paired with their own image, and whether `images.min_paired` applies."""

    rows: int
    paired: int
    applies: bool


class SidecarCounts(_Entry):
    """What is not read of caption files beside images."""

    caption_files: int
    with_more_lines: int
    images: int
    images_without_caption: int
    examples: list[str]


class Accounting(_Entry):
    """The input rows, and those that sampling left out."""

    input_rows: int
    sampled_out: int
    pairs: PairCounts | None = None
    sidecars: SidecarCounts | None = None


class JobEntry(_Entry):
    """A cluster job that worked on the run."""

    id: str
    address: str | None
    began: str


class ProgressEntry(_Entry):
    """The stage that is running, when that was written, and the progress of its current step."""

    at: str
    stage: str = "starting"
    step: str = ""
    unit: str = ""
    done: int | None = None
    total: int = 0
    before: int = 0
    errors: int = 0
    per_second: float = 0.0
    eta_seconds: float | None = None
    workers: int | None = None


class FailureEntry(_Entry):
    """When and why the run stopped."""

    at: str
    message: str


class MitigationBasis(_Entry):
    """What the measurements of `crossaudit mitigate` have in common: seeds, CLIP weights and captions."""

    seeds: list[int]
    clip: str | None
    confirmed: int
    ordinary: int
    captions_sha256: str


class PurgeEntry(_Entry):
    """A purge: what it kept, when it began and finished, and the pictures and files that it removed."""

    keep: Literal["confirmed", "none"]
    begun: str
    finished: str | None
    removed: dict[str, int]
    files: list[str] = []


class PictureFile(_Entry):
    """A file that shows a generation, and the machine that it is on."""

    host: str
    file: str
    sha256: str
    caption_id: str


class RunManifest(_Entry):
    """The content of manifest.json: what was audited, with what, and what came out.

    `models` maps models to parts to sha256; `parts` maps tables to files to rows; `thresholds` maps embedders to kinds.
    """

    kind: Literal["audit", "index"]
    version: str | None
    config: dict[str, Any]
    resolved: dict[str, Any]
    inputs: list[InputFile]
    models: dict[str, dict[str, str]]
    checkpoints: dict[str, Checkpoint]
    packages: dict[str, str | None]
    seeds: RunSeeds
    dtype: str | None
    device: str
    threads: int
    calibration: CalibrationEntry
    thresholds: dict[str, dict[str, ThresholdEntry]]
    by_chance: ByChance | None = None
    claims: ClaimsEntry
    selection: SelectionEntry | None = None
    clusters: ClustersEntry | None = None
    index: dict[str, InvertedFileEntry] = {}
    mitigation: MitigationBasis | None = None
    stages: dict[str, StageEntry]
    accounting: Accounting
    parts: dict[str, dict[str, int]]
    jobs: list[JobEntry]
    progress: ProgressEntry | None
    failed: FailureEntry | None
    started: str
    finished: str | None
    purged: list[PurgeEntry] = []
    pictures: list[PictureFile] = []

    @field_validator("resolved")
    @classmethod
    def _names_embedders(cls, resolved: dict[str, Any]) -> dict[str, Any]:
        confirm = resolved.get("confirm")
        if not isinstance(confirm, dict) or not confirm.get("embedders"):
            raise ValueError("it has no confirm.embedders")
        return resolved

    def to_json(self) -> bytes:
        """Return the content of the file. Fields that were never set are left out."""
        content = self.model_dump(exclude_unset=True)
        return json.dumps(content, indent=1, default=str, allow_nan=False).encode()

    @property
    def embedders(self) -> list[str]:
        """The configured embedders; the first one decides."""
        return list(self.resolved["confirm"]["embedders"])

    @property
    def deciding_thresholds(self) -> dict[str, ThresholdEntry]:
        """The thresholds of the deciding embedder by kind; empty if there were no images to compare with."""
        return self.thresholds.get(self.embedders[0], {})


def missing(where: str) -> AuditError:
    """Return the error for a folder without a manifest."""
    return AuditError(f"no {NAME}: this is not a run", where=where, hint=_RUN)


def parse(content: bytes, where: str) -> RunManifest:
    """Parse a manifest.

    Args:
        content: Bytes of the file.
        where: The file, for errors.

    Raises:
        AuditError: The manifest is damaged, or a key is missing, unknown or has a wrong value.
    """
    try:
        json.loads(content)
    except ValueError as error:
        hint = f"Is this the manifest of a run? {_RUN} If it is damaged, restore it or audit with another --out."
        raise AuditError(f"not JSON, or damaged: {error}", where=where, hint=hint) from error
    try:
        return RunManifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        what = f"this is not the manifest of a run of this version: {_explain(error.errors())}"
        raise AuditError(what, where=where, hint=_RUN) from error


def _explain(problems: Sequence[Mapping[str, Any]]) -> str:
    """Describe the problems that pydantic found: missing keys together, else the first one."""
    absent = [_key(problem) for problem in problems if problem["type"] == "missing"]
    if absent:
        return f"it has no {', '.join(absent)}"
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {_key(first)}"
    return f"{_key(first) or 'its content'}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _key(problem: Mapping[str, Any]) -> str:
    return ".".join(str(name) for name in problem["loc"])
