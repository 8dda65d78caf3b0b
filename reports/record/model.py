"""Define the record of a run. Its JSON schema is reports/record/record.schema.json.

Similarities are cosine similarities of the deciding embedder. Shares are from 0 to 1, times in seconds.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from audit.record.manifest_entries import (
    CalibrationEntry,
    ClaimsEntry,
    ClustersEntry,
    ConfirmErrorEntry,
    InvertedFileEntry,
    PairCounts,
    SelectionEntry,
    StageEntry,
    ThresholdEntry,
)
from audit.statistics.raters import Agreement, Rater
from reports.pictures import Picture

VERSION: Literal["1"] = "1"
Step = Literal["captions", "screened", "generated", "confirmed"]
HistogramName = Literal["scores", "similarities"]


class Part(BaseModel):
    """A part of the record. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


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


class Answer(Part):
    """What was found, in one sentence, and the numbers in it.

    Attributes:
        sentence: The answer.
        captions: Number of captions audited.
        generated: Number of captions for which images were generated and compared.
        confirmed: Number of captions that made the model copy a training image, or a part of one.
        low: At least this share of all captions do; None without such a claim.
        high: At most this share of all captions do; None without such a claim.
        confidence: The probability with which `low` and `high` hold together; None without both.
    """

    sentence: str
    captions: int
    generated: int
    confirmed: int
    low: float | None
    high: float | None
    confidence: float | None


class FunnelStep(Part):
    """A step from all captions to the confirmed ones: what remains, and the time that the step took."""

    step: Step
    captions: int
    seconds: float


class VerdictCount(Part):
    """The number of captions with a verdict, and of their dataset rows."""

    verdict: str
    meaning: str
    captions: int
    rows: int


class Confirmed(Part):
    """Counts over the confirmed captions."""

    captions: int
    families: int
    images: int
    not_reproduced: int  # no fresh seed copied again
    untested: int  # no fresh seed was tried


class Histogram(Part):
    """Counts of captions per bin; `edges` has one more value than each list in `counts`."""

    edges: list[float]
    counts: dict[str, list[int]]
    cut: float | None  # scores: the lowest score that was selected; similarities: the threshold


class SelectedCaption(Part):
    """A caption for which images were generated, or that could not be audited.

    Attributes:
        margin: Similarity less its threshold, for the whole image or a region, whichever is higher. Below 0 if neither
            reaches its threshold.
        family: The family of a confirmed caption; the caption itself if nothing else copies the same image.
        selected_by: budget | sample | None.
        hosts: Hosts of the URLs of its dataset rows, at most MAX_HOSTS of them.
        file, row: The first of its dataset rows.
        p_unseen: p-value against the control captions.
    """

    caption_id: str
    caption: str
    verdict: str
    risk: str
    row_count: int
    selected_by: str | None
    score: float | None
    p_unseen: float | None
    similarity: float | None
    region_similarity: float | None
    margin: float | None
    near_miss: bool
    image_id: str | None
    family: str | None
    fresh_copies: int | None
    fresh_generations: int | None
    support: str | None
    hosts: list[str]
    host_count: int
    file: str | None
    row: int | None
    error: str | None


class Family(Part):
    """Confirmed captions that copy the same training image, or the same region of several.

    Attributes:
        family: The smallest caption_id in it.
        risk: The highest risk of its captions.
        captions: Number of captions in it.
        rows: Number of their dataset rows.
        images: Number of training images that they copy.
    """

    family: str
    risk: str
    captions: int
    rows: int
    images: int


class Place(Part):
    """A row of the dataset."""

    file: str | None
    row: int | None
    key: str | None
    url: str | None
    host: str | None


class Generation(Part):
    """A generated image of a case, and its similarity to the training image of the case."""

    purpose: Literal["discover", "fresh"]
    seed: int
    similarity: float | None
    picture: Picture | None


class OtherEmbedder(Part):
    """What another embedder says about the same pair of images."""

    embedder: str
    similarity: float | None


class HumanVerdict(Part):
    """What reviewers decided about a caption."""

    outcome: str
    copied: int
    not_copied: int
    raters: int


class WaiverNote(Part):
    """Why a copy is acceptable, and who answers for that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    covers: str
    reason: str
    owner: str
    expires: date


class Case(Part):
    """A confirmed caption with its images. `caption_id` names its row in `selected`.

    Attributes:
        image_id: The training image that it copies.
        kind: What decided: `verbatim` (the whole image) or `region`.
        similarity: The similarity that decided, of the generation in `generations[0]`.
        threshold: The threshold that it reached.
        pixel_agreement: Share of the picture in which the two images agree.
        matched_own_image: Whether a dataset row has both the caption and the image.
        generations: The generation that was confirmed, then some with fresh seeds.
        training: The training image; blurred unless the run shows training images.
        region: Where the two images agree: white on black. None if the run has no region.
        image_places: Where the dataset has the training image.
        caption_places: Where the dataset has the caption; at most MAX_PLACES of `row_count` rows.
        token_attention: Attention to each token of the prompt, if the run measured it.
        explain: The command that shows how the model processes the caption; None in a redacted edition.
        reproduce: The command that generates the case again; None in a redacted edition.
    """

    caption_id: str
    image_id: str
    kind: Literal["verbatim", "region"]
    similarity: float | None
    threshold: float | None
    pixel_agreement: float | None
    matched_own_image: bool | None
    others: list[OtherEmbedder]
    generations: list[Generation]
    training: Picture | None
    region: Picture | None
    image_places: list[Place]
    caption_places: list[Place]
    token_attention: list[float] | None
    explain: str | None
    reproduce: str | None


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


class MitigationSetting(Part):
    """What one mitigation setting does to confirmed captions, and to ordinary ones."""

    method: str
    settings: str
    captions: int
    captions_above: int
    captions_near: int
    share_above: float
    share_above_low: float
    share_above_high: float
    median_similarity: float | None
    clip_score: float | None
    diversity: float | None
    ordinary_clip: float | None
    ordinary_diversity: float | None
    seconds_per_image: float | None


class MitigationPair(Part):
    """A caption without and with the best mitigation setting."""

    caption_set: str
    caption_id: str
    caption: str
    seed: int
    plain_similarity: float | None
    similarity: float | None
    is_copy: bool  # with mitigation
    plain: Picture | None
    mitigated: Picture | None
    training: Picture | None


class Mitigation(Part):
    """What `crossaudit mitigate` measured. `tolerated` is the share of CLIP score that the best setting may cost."""

    settings: list[MitigationSetting]
    best: MitigationSetting | None
    tolerated: float
    pairs: list[MitigationPair]
    seeds: list[int]


class Review(Part):
    """What people decided (`crossaudit review`). Rates and decisions are those of `audit.statistics.raters`."""

    raters: list[Rater]
    panel: int
    least: int
    pairs: int
    types: dict[str, int]
    agreements: list[Agreement]
    outcomes: dict[str, int]
    not_reviewed: int
    false_positive: tuple[int, int]
    false_negative: tuple[int, int]
    bound: float
    claim: str | None  # a sentence that holds on its own, apart from the claims of the audit


class NextStep(Part):
    """Something to do, and the commands for it, with the paths of this run."""

    purpose: str
    commands: list[str]


class Method(Part):
    """How the run was done, as its manifest says.

    Attributes:
        uncalibrated: Detectors of the run that are uncalibrated evidence: they read attention, and the audited model
            is of a family without planted models, which would show how well they tell memorized captions.
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
