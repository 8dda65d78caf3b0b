"""Detectors are measured against labels, and no label and no caption is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from audit.defaults import DEFAULT_DETECTOR
from audit.errors import AuditError, UsageError
from pipelines.runs.evaluate import Evaluation, Measured, evaluate
from reports.query import query
from tests.support.changed_run import change_table
from tests.support.toy import MODEL


@pytest.fixture(scope="module")
def many(toy: Path, audited: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with detectors of screens and of generations."""
    overrides = (f"model={{path: {MODEL}, resolution: 16}}", "calibration.screen=null", "engine.shard_rows=256")
    overrides += ("screen.detectors=[profile]", "generate.detectors=[entropy_trajectory]")
    overrides += ("confirm.control_captions=72", "confirm.fresh_seeds=0")
    return Path(audited(toy / "audit.yaml", *overrides, out=str(tmp_path_factory.mktemp("many") / "run")))


@pytest.fixture
def labels(finished: Path, tmp_path: Path) -> Path:
    """Labels of the first 12 captions, of which 6 are verbatim and 4 partial, and of two captions of other data."""
    words = ["verbatim"] * 6 + ["partial"] * 4 + ["near", "ordinary"]
    path = tmp_path / "labels.csv"
    rows = [f'"{caption}",{word}' for caption, word in zip(captions(finished), words, strict=False)]
    path.write_text("\n".join(["caption,label", *rows, "elsewhere,verbatim", "nowhere,none"]) + "\n", "utf-8")
    return path


def captions(run: Path) -> list[str]:
    """Return the captions of the run in a fixed order."""
    found: list[str] = query(run, "select caption from captions order by caption")["caption"].to_pylist()
    return found


def score_of(run: Path) -> dict[str, float]:
    """Return the score that the run gives each caption."""
    table = query(run, "select caption, score from scores join captions using (caption_id)")
    return dict(zip(table["caption"].to_pylist(), table["score"].to_pylist(), strict=True))


def of(found: Evaluation, detector: str, label: str) -> Measured:
    """Return the figures of a detector for a label."""
    [one] = [measured for measured in found.measured if (measured.detector, measured.label) == (detector, label)]
    return one


def test_the_figures_are_those_of_the_scores_of_the_run(finished: Path, labels: Path) -> None:
    found = evaluate(str(finished), str(labels))
    texts, scores = captions(finished), score_of(finished)
    for label, chosen in (("verbatim", texts[:6]), ("partial", texts[6:10])):
        positive, negative = ([scores[text] for text in some] for some in (chosen, texts[12:]))
        rates = of(found, DEFAULT_DETECTOR, label).rates
        assert rates is not None
        truth = [1] * len(positive) + [0] * len(negative)
        assert rates.auroc.value == pytest.approx(roc_auc_score(truth, positive + negative))
        assert (rates.positives, rates.negatives) == (len(positive), len(negative))
        assert rates.tpr_at_1_percent.value is None


@pytest.mark.slow
def test_every_detector_that_the_run_has_is_measured_for_every_label(many: Path, labels: Path) -> None:
    found = evaluate(str(many), str(labels))
    measured = {(one.detector, one.label) for one in found.measured}
    detectors = {detector for detector, _ in measured}
    assert {"profile", "attention_profile", "noise_profile", "entropy_trajectory"} <= detectors
    assert measured == {(name, label) for name in detectors for label in ("verbatim", "partial", "near", "ordinary")}
    only = evaluate(str(many), str(labels), detectors=["noise_profile"])
    assert {one.detector for one in only.measured} == {"noise_profile"}


def test_labels_and_captions_are_counted(finished: Path, labels: Path) -> None:
    found, texts = evaluate(str(finished), str(labels)), captions(finished)
    assert found.matched == {"verbatim": 6, "partial": 4, "near": 1, "ordinary": 1}
    assert (found.captions, found.unmatched, found.without_label) == (len(texts), 2, len(texts) - 12)
    assert found.negatives == "all captions without a label"


def test_labelled_negatives_leave_the_unlabelled_captions_out(finished: Path, labels: Path) -> None:
    texts = captions(finished)
    with labels.open("a", encoding="utf-8") as file:
        file.writelines(f'"{text}",none\n' for text in texts[12:20])
    found = evaluate(str(finished), str(labels))
    rates = of(found, DEFAULT_DETECTOR, "verbatim").rates
    assert rates is not None
    assert (rates.negatives, found.without_label) == (8, len(texts) - 20)
    assert found.negatives == "captions with the label none"


def test_a_file_of_negatives(finished: Path, labels: Path, tmp_path: Path) -> None:
    negatives = tmp_path / "negatives.txt"
    negatives.write_text("\n".join([*captions(finished)[10:22], "not in the run"]), "utf-8")
    found = evaluate(str(finished), str(labels), str(negatives))
    rates = of(found, DEFAULT_DETECTOR, "verbatim").rates
    assert rates is not None
    assert rates.negatives == 10  # two of the file have another label
    assert (found.matched["near"], found.unmatched) == (1, 3)


def test_captions_without_a_score_are_counted(own: Path, labels: Path) -> None:
    missing = captions(own)[0]
    [id_] = query(own, f"select caption_id from captions where caption = '{missing}'")["caption_id"].to_pylist()
    empty = {DEFAULT_DETECTOR: None, "status": "error"}
    change_table(own, "screen", lambda row: row | (empty if row["caption_id"] == id_ else {}))
    measured = of(evaluate(str(own), str(labels)), DEFAULT_DETECTOR, "verbatim")
    assert measured.without_score == (1, 0)
    assert measured.rates is not None
    assert measured.rates.positives == 5


def test_near_identical_captions_are_one_cluster(own: Path, labels: Path) -> None:
    change_table(own, "caption_groups", lambda row: row | {"caption_group": "same"})
    rates = of(evaluate(str(own), str(labels)), DEFAULT_DETECTOR, "verbatim").rates
    assert rates is not None
    assert (rates.positive_clusters, rates.negative_clusters) == (1, 1)


def test_what_cannot_be_measured_is_refused(finished: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scores of the detector entropy_trajectory"):
        evaluate(str(finished), str(labels), detectors=["entropy_trajectory"])
    other = tmp_path / "other.txt"
    other.write_text("no caption of the run\n", "utf-8")
    with pytest.raises(AuditError, match="none of the captions with a label"):
        evaluate(str(finished), str(other))


@pytest.mark.slow
def test_detectors_of_generations_are_measured_on_the_generated_captions(many: Path, labels: Path) -> None:
    sql = "select caption from captions semi join (from generations where purpose = 'discover') using (caption_id)"
    made = query(many, sql)
    generated = set(made["caption"].to_pylist())
    found = evaluate(str(many), str(labels), detectors=["entropy_trajectory"])
    measured = of(found, "entropy_trajectory", "verbatim")
    assert measured.rates is not None, measured.reason
    positives = [text for text in captions(many)[:6] if text in generated]
    assert measured.rates.positives == len(positives)
    assert measured.without_score[0] == 6 - len(positives)
    assert measured.rates.auroc.value is not None
    assert np.isfinite(measured.rates.auroc.value)
