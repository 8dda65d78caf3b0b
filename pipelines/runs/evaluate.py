"""Measure the detectors of a finished run against captions whose truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import audit
from audit import schema
from audit.detectors import COMBINED, RUN, SCORES, columns_of
from audit.duplicates.captions import caption_id
from audit.duplicates.components import joined
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from audit.statistics.detection_rates import DetectionRates, detection_rates
from pipelines.reading.labels import LABELS, Labels, read_labels
from pipelines.runs.finished_run import finished, whole_table

NEGATIVE = "none"


@dataclass(frozen=True)
class Measured:
    """How well one detector separates the captions of one label from the negatives.

    Attributes:
        detector: The detector.
        label: The label of the positives.
        without_score: Captions of the label, and negatives, that the detector has no score for.
        rates: The figures; None if the detector gives no score.
        reason: Why there are no figures.
    """

    detector: str
    label: str
    without_score: tuple[int, int]
    rates: DetectionRates | None
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        captions: Number of captions of the run.
        files: What the label file, and the file of negatives if there is one, hold.
        matched: Captions of the run per label, after all files.
        unmatched: Labelled captions that the run does not have.
        without_label: Captions of the run that no file has.
        negatives: Where the negatives come from.
        measured: The figures per detector and label.
    """

    captions: int
    files: dict[str, Labels]
    matched: dict[str, int]
    unmatched: int
    without_label: int
    negatives: str
    measured: list[Measured]


def evaluate(uri: str, labels: str, negatives: str | None = None, detectors: Sequence[str] | None = None) -> Evaluation:
    """Measure how well detectors separate labelled captions from negatives.

    The negatives are the captions with the label `none` and those of the file `negatives`. If there are none of
    either, they are all captions of the run without a label.

    Args:
        uri: The path or URI of a finished run.
        labels: The file of labels.
        negatives: A file of captions that are not memorized, or None.
        detectors: The detectors to measure (default: all that the run has the columns of).

    Returns:
        The counts, and the figures of each detector for each label.

    Raises:
        UsageError: A file is no label file, or the run has not the columns of a detector.
        AuditError: The run is not finished, or it has none of the labelled captions.
    """
    ledger, _, _ = finished(uri)
    files = {"labels": read_labels(labels)}
    if negatives is not None:
        files["negatives"] = read_labels(negatives, NEGATIVE)
    captions = _captions(ledger)
    label_of = _labels(files.values())
    label_N = np.array([label_of.get(id_, "") for id_ in captions["caption_id"].to_pylist()], object)
    matched = Counter(label_N.tolist())
    without = matched.pop("", 0)
    if not matched.keys() - {NEGATIVE}:
        hint = "Captions must be the same text as in the dataset."
        raise AuditError("the run has none of the captions with a label", where=labels, hint=hint)
    if matched[NEGATIVE]:
        source = "captions with the label none" if negatives is None else "captions with the label none, and the file"
    else:
        source, label_N[label_N == ""] = "all captions without a label", NEGATIVE
    return Evaluation(
        captions=len(captions),
        files=files,
        matched={label: matched[label] for label in LABELS if matched[label]},
        unmatched=len(label_of) - sum(matched.values()),
        without_label=without,
        negatives=source,
        measured=list(_measured(ledger, captions, label_N, detectors)),
    )


def _labels(files: Any) -> dict[str, str]:
    """Return the label of each caption by caption_id; the worst if several files have it."""
    found: dict[str, str] = {}
    for file in files:
        for caption, label in file.label_of.items():
            id_ = caption_id(caption)
            found[id_] = min(label, found.get(id_, label), key=LABELS.index)
    return found


def _captions(ledger: Ledger) -> pa.Table:
    """Return caption_id and cluster of all captions. A cluster joins groups of captions and families of verdicts."""
    groups = whole_table(ledger, "caption_groups", ["caption_id", "caption_group"])
    verdicts = whole_table(ledger, "verdicts", ["caption_id", "family"])
    ids = groups["caption_id"].combine_chunks()
    family = verdicts.take(pc.index_in(ids, value_set=verdicts["caption_id"].combine_chunks()))["family"]
    cluster = joined([groups["caption_group"].combine_chunks(), family.combine_chunks()])
    return pa.table({"caption_id": ids, "cluster": pa.array(cluster)})


def _measured(
    ledger: Ledger, captions: pa.Table, label_N: np.ndarray, detectors: Sequence[str] | None
) -> Iterator[Measured]:
    cluster_N = captions["cluster"].to_numpy()
    positives = [label for label in LABELS if label != NEGATIVE and (label_N == label).any()]
    for detector in _chosen(ledger, detectors):
        try:
            score_N = _scores(ledger, detector, captions["caption_id"].combine_chunks())
        except AuditError as error:
            yield from (Measured(detector, label, (0, 0), None, error.what) for label in positives)
            continue
        known_N = ~np.isnan(score_N)
        negative_N = (label_N == NEGATIVE) & known_N
        for label in positives:
            positive_N = (label_N == label) & known_N
            rates = detection_rates(
                score_N[positive_N], score_N[negative_N], cluster_N[positive_N], cluster_N[negative_N]
            )
            lacking = [int(((label_N == word) & ~known_N).sum()) for word in (label, NEGATIVE)]
            yield Measured(detector, label, (lacking[0], lacking[1]), rates)


def _chosen(ledger: Ledger, detectors: Sequence[str] | None) -> list[str]:
    """Return the detectors to measure. Raises UsageError if the run has not the columns of one."""
    found = {table: set(ledger.dataset(table).schema.names) for table in ("screen", "control_screen", "generations")}
    available = [name for name in SCORES if _columns(name) <= found["generations" if name in RUN else "screen"]]
    available = [name for name in available if name in RUN or _columns(name) <= found["control_screen"]]
    unknown = [name for name in detectors or () if name not in available]
    if unknown:
        what = f"the run has no scores of the detector {', '.join(unknown)}"
        raise UsageError(what, where="--detector", hint=f"It has those of: {', '.join(available)}.")
    return list(dict.fromkeys(detectors)) if detectors else available


def _columns(detector: str) -> set[str]:
    return {column for part in COMBINED.get(detector, (detector,)) for column in columns_of(part)}


def _scores(ledger: Ledger, detector: str, ids: pa.Array) -> np.ndarray:
    """Return the score of each caption [N], calibrated by the control captions of the run; NaN if it has none."""
    calibration = audit.calibrate(_controls(ledger, detector), detector)
    scored = [calibration.score(part) for part in _parts(ledger, detector, "discover")]
    found = pa.concat_tables([part.select(["caption_id", "score"]) for part in scored])
    score = found["score"].take(pc.index_in(ids, value_set=found["caption_id"].combine_chunks()))
    return np.asarray(score.to_numpy(zero_copy_only=False), np.float64)


def _controls(ledger: Ledger, detector: str) -> pa.Table:
    """Return the control captions with the columns of a detector and their groups."""
    control = ledger.read("control_screen")
    if detector not in RUN:
        return control
    made = pa.concat_tables(_parts(ledger, detector, "control"))
    at = pc.index_in(made["caption_id"], value_set=control["caption_id"].combine_chunks())
    return made.append_column("caption_group", control["caption_group"].take(at))


def _parts(ledger: Ledger, detector: str, purpose: str) -> Iterator[pa.Table]:
    """Yield the rows of each part that has the columns of a detector, without pictures.

    Args:
        ledger: The run.
        detector: The detector. It says whether the part is one of `screen` or of `generations`.
        purpose: For `generations`, the purpose of the rows.
    """
    columns = _columns(detector)
    wanted = [*columns, *(schema.REFERENCE + name for name in columns), "caption_id", "purpose", "seed", "status"]
    for _, part in ledger.each("generations" if detector in RUN else "screen", wanted):
        if "purpose" in part.column_names:
            part = part.filter(pc.field("purpose") == purpose)
        if len(part) and columns <= set(part.column_names):
            yield part
