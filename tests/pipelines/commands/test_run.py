"""crossaudit run: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.called import crossaudit
from tests.support.finished import finish_run
from tests.support.toy import write_config


@pytest.fixture(scope="module")
def folder(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data")).parent


def audit(folder: Path, verdicts: tuple[str, ...], *options: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `run` on a run with these verdicts."""
    out = "-".join(verdicts)
    config = write_config(folder, out=out)
    if not (folder / out).exists():
        finish_run(config, *verdicts)
    return crossaudit("run", str(config), *options)


@pytest.mark.parametrize(
    ("verdicts", "threshold", "code"),
    [
        (("not_selected", "unconfirmed"), "partial", 0),
        (("not_selected", "partial"), "partial", 3),
        (("not_selected", "partial"), "verbatim", 0),
        (("not_selected", "verbatim"), "partial", 3),
        (("not_selected", "verbatim"), "verbatim", 3),
    ],
)
def test_fail_on_exits_with_3_for_this_verdict_and_worse_ones(
    folder: Path, verdicts: tuple[str, ...], threshold: str, code: int
) -> None:
    assert audit(folder, verdicts)[0] == 0
    assert audit(folder, verdicts, "--fail-on", threshold)[0] == code


def test_fail_on_needs_training_images(folder: Path) -> None:
    config = write_config(folder, images=None, out="no-images")
    code, _, error = crossaudit("run", str(config), "--fail-on", "verbatim")
    assert code == 2
    assert "without training images" in error


def test_json_is_one_document_on_standard_output(folder: Path) -> None:
    code, output, error = audit(folder, ("not_selected", "partial", "verbatim"), "--json", "--fail-on", "partial")
    found: dict[str, Any] = json.loads(output)
    run = str(folder / "not_selected-partial-verbatim")
    assert code == 3
    assert "crossaudit purge" in " ".join(error.split())
    assert (found["run"], found["report"]) == (run, f"{run}/report.html")
    counted = {word: count for word, count in found["verdicts"].items() if count}
    assert counted == {"verbatim": 1, "partial": 1, "not_selected": 1}
    assert found["fail_on"] == {"verdict": "partial", "captions": 2}


def test_json_of_check_only_counts_the_files(folder: Path) -> None:
    code, output, _ = audit(folder, ("not_selected", "verbatim"), "--json", "--check-only")
    assert (code, json.loads(output)) == (0, {"caption_files": 2, "image_files": 2})


def test_json_prints_nothing_where_the_run_cannot_start(folder: Path) -> None:
    code, output, error = crossaudit("run", str(write_config(folder, model="nowhere", out="x")), "--json")
    assert (code, output) == (1, "")
    assert "nowhere" in error


def test_json_of_status_says_how_far_the_run_is(folder: Path) -> None:
    audit(folder, ("not_selected", "verbatim"))
    code, output, _ = crossaudit("status", str(folder / "not_selected-verbatim"), "--json")
    found = json.loads(output)
    assert code == 0
    assert found["state"] == "finished"
    assert found["finished"]
    assert found["job"] is None
    assert found["stages"] == {}


def test_json_of_check_has_every_statement_and_the_same_exit_code(folder: Path) -> None:
    audit(folder, ("not_selected", "verbatim"))
    run = str(folder / "not_selected-verbatim")
    code, output, _ = crossaudit("check", run, "--json")
    found = json.loads(output)
    assert (code, found["run"], found["ok"]) == (crossaudit("check", run)[0], run, False)
    assert {"name", "ok", "detail", "warning"} == set(found["checks"][0])
    assert found["checks"][0]["ok"]
    assert not all(item["ok"] for item in found["checks"])
