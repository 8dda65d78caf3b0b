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


CLAIMS, SAMPLE = (
    "the claims and their sentences follow from the tables",
    "the audit sample is the one that its seed draws",
)


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


def _other_seed(content: dict[str, Any]) -> None:
    content["seeds"]["sample"] = 7


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_at_most_12, CLAIMS),
        (_sentence, CLAIMS),
        (_level, CLAIMS),
        (_fewer_false_positives, CLAIMS),
        (_other_seed, SAMPLE),
    ],
)
def test_an_edited_manifest_fails(own: Path, change: Callable[[dict[str, Any]], None], name: str) -> None:
    edit(own, change)
    assert list(wrong(own)) == [name]


def test_the_command_says_what_differs(own: Path) -> None:
    edit(own, _sentence)
    called = crossaudit("check", str(own))
    assert called.returncode == 1
    assert f"WRONG {CLAIMS}: claims.sentences[1] is 'At most 12 per million captions.' in the manifest" in called.stdout
