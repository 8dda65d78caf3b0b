"""What the manifest of a run states is computed again from the tables, and edits are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.recomputed_results import recompute
from tests.support.called import crossaudit


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((run / "manifest.json").read_text())
    change(content)
    (run / "manifest.json").write_text(json.dumps(content))


def wrong(run: Path) -> dict[str, str]:
    return {check.name: check.detail for check in recompute(str(run)) if not check.ok}


def test_a_finished_run_agrees_with_its_tables(finished: Path) -> None:
    assert recompute(str(finished))
    assert wrong(finished) == {}


CLAIMS = "the claims and their sentences follow from the tables"
SAMPLE = "the audit sample is the one that its seed draws"
THRESHOLDS = "the thresholds and their measured error follow from the control captions"


def _at_most_12(content: dict[str, Any]) -> None:
    for claim in content["claims"]["claims"]:
        if (claim["estimand"], claim["end"]) == ("copies", "at_most"):
            claim["value"] = 12


def _sentence(content: dict[str, Any]) -> None:
    content["claims"]["sentences"][1] = "At most 12 per million captions."


def _level(content: dict[str, Any]) -> None:
    content["claims"]["joint_level"] = 0.99


def _fewer_false_positives(content: dict[str, Any]) -> None:
    content["confirm_error"]["controls"] = 100_000


def _moved_threshold(content: dict[str, Any]) -> None:
    content["thresholds"]["sscd"]["verbatim"]["value"] += 0.01


def _hidden_control(content: dict[str, Any]) -> None:
    content["thresholds"]["sscd"]["verbatim"]["used"] -= 1


def _other_seed(content: dict[str, Any]) -> None:
    content["seeds"]["sample"] = 7


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_at_most_12, [CLAIMS]),
        (_sentence, [CLAIMS]),
        (_level, [CLAIMS]),
        (_fewer_false_positives, [THRESHOLDS, CLAIMS]),
        (_moved_threshold, [THRESHOLDS]),
        (_hidden_control, [THRESHOLDS]),
    ],
)
def test_an_edited_manifest_fails(own: Path, change: Callable[[dict[str, Any]], None], names: list[str]) -> None:
    edit(own, change)
    assert list(wrong(own)) == names


def test_another_seed_is_not_that_of_the_sample(own: Path) -> None:
    edit(own, _other_seed)  # it also splits the control captions
    assert SAMPLE in wrong(own)


def test_the_command_says_what_differs(own: Path) -> None:
    edit(own, _sentence)
    called = crossaudit("check", str(own))
    assert called.returncode == 1
    assert f"WRONG {CLAIMS}: claims.sentences[1] is 'At most 12 per million captions.' in the manifest" in called.stdout
