"""crossaudit export: what goes to standard output, to files, and to standard error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import reports.record.captions
from pipelines.commands.export import Format
from reports.exports.formats import FORMATS
from reports.query import query
from tests.support.called import crossaudit
from tests.support.report_run import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every verdict."""
    root = tmp_path_factory.mktemp("export") / "run"
    build(root)
    return root


def test_every_format_can_be_chosen() -> None:
    assert set(Format) == set(FORMATS)


def test_an_export_goes_to_standard_output_unchanged(run: Path) -> None:
    code, output, error = crossaudit("export", run, "--format", "croissant")
    assert (code, error) == (0, "")
    assert "rai:dataLimitations" in json.loads(output)


def test_an_export_goes_to_a_file_whose_name_is_printed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    assert crossaudit("export", run, "--format", "csv", "--out", out) == (0, f"{out}\n", "")
    assert out.read_text("utf-8").startswith('"caption_id"')


def test_a_redacted_export_has_no_captions(run: Path) -> None:
    [caption] = query(run, "select caption from verdicts order by similarity desc limit 1")["caption"].to_pylist()
    assert caption in crossaudit("export", run, "--format", "csv").stdout
    assert caption not in crossaudit("export", run, "--format", "csv", "--redacted").stdout


def test_waivers_are_read(run: Path, tmp_path: Path) -> None:
    high = query(run, "select caption_id from verdicts where risk = 'high'")["caption_id"].to_pylist()
    file = tmp_path / "waivers.yaml"
    file.write_text(f'- {{caption_id: "{high[0]}", reason: flag, owner: Ada, expires: 2999-01-01}}\n')
    code, output, _ = crossaudit("export", run, "--format", "sarif", "--waivers", file)
    assert code == 0
    [log] = json.loads(output)["runs"]
    assert sum(bool(result["suppressions"]) for result in log["results"]) == 1


def test_captions_that_are_left_out_are_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports.record.captions, "MAX_SELECTED", 70)
    code, output, error = crossaudit("export", run, "--format", "csv")
    assert (code, len(output.splitlines())) == (0, 71)
    assert error.startswith("8 captions of lower risk are left out")


def test_a_format_must_be_named(run: Path) -> None:
    code, output, error = crossaudit("export", run)
    assert (code, output) == (2, "")
    assert "--format" in error
