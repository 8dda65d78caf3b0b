"""crossaudit evaluate: what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.query import query
from tests.support.called import crossaudit


@pytest.fixture
def labels(finished: Path, tmp_path: Path) -> Path:
    """A list of memorized captions: the first 15, and one that the run does not have."""
    path = tmp_path / "memorized.txt"
    known = query(finished, "select caption from captions order by caption limit 15")["caption"].to_pylist()
    path.write_text("\n".join([*known, "elsewhere"]), "utf-8")
    return path


def test_it_says_what_became_of_every_label_and_caption(finished: Path, labels: Path) -> None:
    code, output, error = crossaudit("evaluate", finished, "--labels", labels, "--detector", "caption_response")
    assert (code, error) == (0, "")
    assert "labels: 16 rows, 16 captions" in output
    assert "in the run: 15 memorized; 1 labelled captions are not among its 38" in output
    assert "negatives: all captions without a label; 23 captions of the run have no label and are negatives" in output
    assert "23 negatives are too few: this rate needs 500" in output


def test_json_is_one_document(finished: Path, labels: Path) -> None:
    code, output, _ = crossaudit("evaluate", finished, "--labels", labels, "--detector", "caption_response", "--json")
    content = json.loads(output)
    assert code == 0
    assert content["files"]["labels"] == {
        "rows": 16,
        "empty": 0,
        "unlabelled": 0,
        "repeated": 0,
        "conflicting": 0,
        "captions": 16,
    }
    [detector] = content["detectors"]
    assert (detector["detector"], detector["label"]) == ("caption_response", "memorized")
    assert (detector["positives"], detector["negatives"], detector["positives_without_score"]) == (15, 23, 0)
    assert detector["tpr_at_1_percent"]["value"] is None
    assert detector["auroc"]["low"] <= detector["auroc"]["value"] <= detector["auroc"]["high"]


def test_an_unknown_detector_is_wrong_usage(finished: Path, labels: Path) -> None:
    code, _, error = crossaudit("evaluate", finished, "--labels", labels, "--detector", "crystal_ball")
    assert code == 2
    assert "It has those of: caption_response" in error
