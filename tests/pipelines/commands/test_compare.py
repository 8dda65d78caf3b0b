"""crossaudit compare: exit codes, what it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from reports.query import query
from tests.support.called import crossaudit
from tests.support.changed_run import change_manifest, change_table


@pytest.fixture
def worse(finished: Path, tmp_path: Path) -> Path:
    """A run in which every generated caption copies an image."""
    run = Path(shutil.copytree(finished, tmp_path / "worse"))
    beyond: dict[str, Any] = {"similarity": 1.0, "pixel_agreement": None}
    change_table(run, "matches", lambda row: row | (beyond if row["purpose"] == "discover" else {}))
    return run


def test_a_worse_run_exits_with_3_if_asked(finished: Path, worse: Path, tmp_path: Path) -> None:
    assert crossaudit("compare", finished, worse).returncode == 0
    code, output, _ = crossaudit("compare", finished, worse, "--fail-if", "worse", "--out", tmp_path / "page.html")
    assert code == 3
    assert "The second run is worse: it copies more captions (p = " in output
    assert "threshold for verbatim: used " in output
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_better_run_exits_with_0(finished: Path, worse: Path) -> None:
    code, output, _ = crossaudit("compare", worse, finished, "--fail-if", "worse")
    assert code == 0
    assert "is not shown to be worse" in output


def test_json_is_one_document(finished: Path, worse: Path) -> None:
    code, output, _ = crossaudit("compare", finished, worse, "--json", "--fail-if", "worse")
    content = json.loads(output)
    copying = query(finished, "from verdicts where verdict in ('verbatim', 'partial')").num_rows
    made = query(finished, "select distinct caption_id from generations where purpose = 'discover'").num_rows
    assert (code, content["test"]["worse"], content["page"]) == (3, True, None)
    assert content["pairs"] == made
    assert content["counts"] == {"appeared": made - copying, "went": 0, "stayed": copying, "neither": 0}
    assert len(content["changes"]) == made - copying


def test_runs_of_other_seeds_are_refused_with_1(finished: Path, worse: Path) -> None:
    change_manifest(worse, resolved__generate__seeds=[2])
    code, output, error = crossaudit("compare", finished, worse)
    assert (code, output) == (1, "")
    assert "the runs cannot be compared: generate.seeds: [1] and [2]" in error


def test_a_page_of_another_format_is_refused_at_once(finished: Path, tmp_path: Path) -> None:
    assert crossaudit("compare", finished, finished, "--out", tmp_path / "page.pdf").returncode == 2
