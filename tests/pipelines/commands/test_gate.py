"""crossaudit gate: exit codes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.query import query
from tests.support.called import crossaudit
from tests.support.report_run import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every verdict."""
    root = tmp_path_factory.mktemp("gate") / "run"
    build(root)
    return root


def test_a_run_that_does_not_pass_exits_with_3_and_shows_each_rule(run: Path) -> None:
    code, output, error = crossaudit("gate", run, "--max-per-million", "50", "--allow", "unknown")
    assert (code, error) == (3, "")
    high, bound, unknown, failed = output.splitlines()
    assert high.startswith("FAIL  captions at high risk: ")
    assert high.endswith("(at most 0)")
    assert bound.startswith("FAIL  captions per million that copy a training image, at most: ")
    assert bound.endswith("(at most 50)")
    assert unknown == "pass  captions with the verdict unknown: 1 (allowed)"
    assert failed == "FAIL  captions with the verdict error: 1 (at most 0)"


def test_a_run_that_passes_exits_with_0(run: Path) -> None:
    code, output, _ = crossaudit("gate", run, "--max-high", "99", "--allow", "unknown", "--allow", "error")
    assert code == 0
    assert "FAIL" not in output


def test_waivers_count_and_are_listed(run: Path, tmp_path: Path) -> None:
    high = query(run, "select caption_id from verdicts where risk = 'high'")["caption_id"].to_pylist()
    file = tmp_path / "waivers.yaml"
    entries = [{"caption_id": id_, "reason": "flag", "owner": "Ada", "expires": "2999-01-01"} for id_ in [*high, "no"]]
    file.write_text(json.dumps(entries))
    given = ("--waivers", file, "--allow", "unknown", "--allow", "error")
    code, output, _ = crossaudit("gate", run, *given)
    assert code == 0
    assert f"captions at high risk: 0 (at most 0); {len(high)} more are waived" in output
    assert output.count("waived  ") == len(high)
    assert "the waiver for caption_id no covers no confirmed caption" in output
    code, output, _ = crossaudit("gate", run, *given, "--json")
    content = json.loads(output)
    assert (code, content["passed"], content["unused_waivers"]) == (0, True, ["caption_id no"])
    assert {row["caption_id"] for row in content["waived"]} == set(high)
    assert content["rules"][0] == {
        "name": "captions at high risk",
        "figure": 0,
        "limit": 0,
        "passed": True,
        "note": f"{len(high)} more are waived",
    }


def test_an_expired_waiver_is_an_error(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "waivers.yaml"
    file.write_text("- {family: x, reason: logo, owner: Ada, expires: 2020-01-01}\n")
    for command in ("gate", "report"):
        code, output, error = crossaudit(command, run, "--waivers", file)
        assert (code, output) == (2, "")
        assert f"{file}: entry 1: the waiver for family x expired on 2020-01-01" in error


def test_what_is_no_run_exits_with_1(tmp_path: Path) -> None:
    assert crossaudit("gate", tmp_path).returncode == 1
