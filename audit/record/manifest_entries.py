"""Define the entries of RUN/manifest.json as models. Fields with a default are absent until they are known."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ManifestEntry(BaseModel):
    """A part of the manifest. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class InputFile(ManifestEntry):
    """An input file, its fingerprint, and for captions its slices (number of rows, then where they are)."""

    kind: Literal["captions", "images", "calibration"]
    rows: int | None
    file: str
    name: str
    sha256: str
    slices: list[list[int]] = []


class Checkpoint(ManifestEntry):
    """The sampling parameters of a model, its scheduler, and the files of its folder that are not read.

    `numerics` holds torch's flags that change how a GPU rounds, such as TF32. `batch_sizes` holds the batch sizes that
    a worker found, by task; tasks with the usual size are missing. `uncalibrated` names the detectors of the run that
    are uncalibrated evidence for models of this family.
    """

    sampling: dict[str, Any]
    numerics: dict[str, bool] = {}
    batch_sizes: dict[str, int] = {}
    scheduler: dict[str, Any] = {}
    files_not_read: list[str] = []
    uncalibrated: list[str] = []


class RunSeeds(ManifestEntry):
    """The seeds of the stages, of the audit sample, and of the sample of rows.

    `sample` is null until the captions are selected, unless `select.seed` was configured.
    """

    screen: list[int]
    generate: list[int]
    fresh: list[int]
    sample: int | None
    captions: int


class TelltaleEntry(ManifestEntry):
    """A word that is more frequent in one of two sets of captions, and the fractions of captions that have it."""

    word: str
    controls: float
    captions: float


class LikenessEntry(ManifestEntry):
    """Whether the control captions are like the dataset (`audit.calibration.likeness.Likeness`).

    `accepted` tells that they are not, and that the user accepted them.
    """

    auc: float | None
    low: float | None
    high: float | None
    limit: float
    controls: int
    captions: int
    control_topics: int
    caption_topics: int
    of_controls: list[TelltaleEntry]
    of_captions: list[TelltaleEntry]
    accepted: bool = False

    @property
    def unlike(self) -> bool:
        """Whether the AUC is clearly above the limit: the lower end of its interval is."""
        return self.low is not None and self.low > self.limit


class StratumEntry(ManifestEntry):
    """Held-out control captions with small p-values in one stratum (`audit.calibration.strata.Stratum`)."""

    kind: Literal["length", "truncation", "script"]
    name: str
    controls: int
    above: list[int]
    low: list[float]
    high: list[float]
    share_controls: float
    share_captions: float


class CalibrationEntry(ManifestEntry):
    """How many control captions there are, what they are for, and why the q-values are there or not.

    `p_unseen` is the reason why p-values are withheld.
    """

    removed: int = 0
    control_captions: int = 0
    detector: str = ""
    fit: int = 0
    held_out: int = 0
    likeness: LikenessEntry | None = None
    strata: list[StratumEntry] = []
    p_unseen: str = ""
    q_unseen: str = ""
    smallest_q: float | None = None


class ExcludedControl(ManifestEntry):
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


class TailEntry(ManifestEntry):
    """The normal distribution of Fisher's z (`audit.verdicts.control_captions.Tail`)."""

    mean: float
    deviation: float
    controls: int


class ThresholdEntry(ManifestEntry):
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


class ConfirmErrorEntry(ManifestEntry):
    """How often the confirm step errs (`audit.verdicts.confirm_error.ConfirmError`)."""

    controls: int
    confirmed: int
    reproducing: int
    high: float | None
    captions: int
    pairs: int = 0
    pairs_confirmed: int = 0
    pairs_high: float | None = None


class TallyEntry(ManifestEntry):
    """Counts of generated captions (`audit.statistics.bounds.Tally`)."""

    captions: int
    flagged: int
    undetermined: int


class EvidenceEntry(ManifestEntry):
    """The counts that the claims follow from (`audit.statistics.bounds.Evidence`)."""

    captions: int
    census: TallyEntry
    sample: TallyEntry
    controls: int | None
    false_positives: int
    until: float | None
    sample_limit: int | None


class BoundsEntry(ManifestEntry):
    """Bounds on numbers of captions, which hold together (`audit.statistics.bounds.Bounds`)."""

    flagged_low: int
    flagged_high: int
    missed_high: int
    false_positive_rate_high: float | None
    census_low: int | None
    missed_low: int | None


class ClaimEntry(ManifestEntry):
    """One end of a claim (`audit.statistics.claims.Claim`)."""

    estimand: Literal["copies", "flagged", "rows", "recall", "recall_families", "generations", "false_positives"]
    end: Literal["at_least", "at_most"]
    value: float
    of: int
    level: float
    sentence: str
    would_change: str


class RecallEntry(ManifestEntry):
    """The recall of the budget in one stratum of the captions (`audit.verdicts.recall.RecallInStratum`)."""

    by: str
    value: str
    captions: int
    census: TallyEntry
    sample: TallyEntry
    missed_high: int
    recall_low: float | None


class ClaimsEntry(ManifestEntry):
    """What the audit claims about all captions (`audit.statistics.claims`)."""

    joint_level: float = 0.0
    population: str = ""
    evidence: EvidenceEntry | None = None
    bounds: BoundsEntry | None = None
    claims: list[ClaimEntry] = []
    recall_by_stratum: list[RecallEntry] = []
    sentences: list[str] = []


class SelectionEntry(ManifestEntry):
    """How many captions were selected by score, by duplicates and at random, of all captions."""

    budget: int
    by_duplicates: int
    audit_sample: int
    captions: int


class ClustersEntry(ManifestEntry):
    """From which similarity on images are near duplicates, and with `index.type: ivf` how many of them were found."""

    threshold: float
    source: str
    images_with_duplicates: int
    recall: float | None = None
    images: int | None = None
    pairs: int | None = None


class InvertedFileEntry(ManifestEntry):
    """How often an inverted file finds the nearest image."""

    recipe: str
    queries: int
    recall_at_1: float | None


class StageEntry(ManifestEntry):
    """What a stage read, wrote and lost, and how long it took."""

    rows_in: int = 0
    rows_out: int = 0
    errors: int = 0
    seconds: float = 0.0


class PairCounts(ManifestEntry):
    """How many rows are paired with their own image, and whether `images.min_paired` applies."""

    rows: int
    paired: int
    applies: bool


class SidecarCounts(ManifestEntry):
    """What is not read of caption files beside images."""

    caption_files: int
    with_more_lines: int
    images: int
    images_without_caption: int
    examples: list[str]


class Accounting(ManifestEntry):
    """The input rows, and those that sampling left out."""

    input_rows: int
    sampled_out: int
    pairs: PairCounts | None = None
    sidecars: SidecarCounts | None = None


class JobEntry(ManifestEntry):
    """A cluster job that worked on the run."""

    id: str
    address: str | None
    began: str


class ProgressEntry(ManifestEntry):
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


class FailureEntry(ManifestEntry):
    """When and why the run stopped."""

    at: str
    message: str


class MitigationBasis(ManifestEntry):
    """What the measurements of `crossaudit mitigate` have in common: seeds, CLIP weights and captions."""

    seeds: list[int]
    clip: str | None
    confirmed: int
    ordinary: int
    captions_sha256: str


class PurgeEntry(ManifestEntry):
    """A purge: what it kept, when it began and finished, and the pictures and files that it removed."""

    keep: Literal["confirmed", "none"]
    begun: str
    finished: str | None
    removed: dict[str, int]
    files: list[str] = []


class PictureFile(ManifestEntry):
    """A file that shows a generation, and the machine that it is on."""

    host: str
    file: str
    sha256: str
    caption_id: str
