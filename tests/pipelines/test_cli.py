"""The command line: exit codes, errors in a line or two, help with an example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from audit.defaults import DEFAULT_DETECTOR
from tests.support.called import crossaudit
from tests.support.paths import DATA, ROOT
from tests.support.tiny_mmdit import tiny_flux
from tests.support.toy import MODEL, judged, write_config

COMMANDS = (
    "init",
    "demo",
    "plan",
    "run",
    "submit",
    "status",
    "logs",
    "stop",
    "mitigate",
    "query",
    "sql",
    "views",
    "report",
    "check",
    "errors",
    "purge",
    "exclusions",
    "clean",
    "detectors",
    "explain",
    "config",
    "gate",
    "compare",
    "evaluate",
)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """What there is of a run after `verdicts`: two captions."""
    return judged(str(tmp_path / "run"), {name: f"caption {name}" for name in ("a", "b")}, 1.5)


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    shown = crossaudit("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)
    heavy = "import sys, pipelines.cli; print([m for m in ('torch', 'ray', 'duckdb', 'pyarrow') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(command: str) -> None:
    shown = crossaudit(command, "--help")
    assert shown.returncode == 0
    assert f"Example: crossaudit {command}" in shown.stdout


def test_wrong_usage_exits_with_2() -> None:
    assert crossaudit("run").returncode == 2
    assert crossaudit("audit").returncode == 2
    assert crossaudit("config").returncode == 2


def test_a_wrong_configuration_exits_with_2_and_one_line(tmp_path: Path) -> None:
    failed = crossaudit("run", str(write_config(tmp_path, select={"bugdet": 1})))
    assert failed.returncode == 2
    [line] = failed.stderr.splitlines()
    assert line.startswith(f"crossaudit: {tmp_path}/audit.yaml: unknown key select.bugdet; did you mean select.budget?")


def test_an_audit_that_cannot_finish_exits_with_1_and_shows_the_traceback_if_asked(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    failed = crossaudit("run", path)
    assert failed.returncode == 1
    assert "captions/*.parquet: no file matches" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Traceback" in crossaudit("run", path, "--verbose").stderr


def test_init_writes_once(tmp_path: Path) -> None:
    assert crossaudit("init", cwd=tmp_path).returncode == 0
    again = crossaudit("init", cwd=tmp_path)
    assert again.returncode == 2
    assert "audit.yaml already exists" in again.stderr


def test_config_prints_what_it_resolves(tmp_path: Path) -> None:
    shown = crossaudit("config", str(write_config(tmp_path)), "--set", "generate.steps=7")
    resolved = yaml.safe_load(shown.stdout)
    assert resolved["generate"] == {
        "seeds": [1],
        "steps": 7,
        "guidance_scale": 7.5,
        "batch_size": None,
        "detectors": [],
    }
    assert resolved["out"] == f"{tmp_path}/run"
    assert json.loads(crossaudit("config", "--schema").stdout)["title"] == "Config"


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("csv", '"caption","score"\n"caption a",1.5\n'), ("json", '{"caption": "caption a", "score": 1.5}\n')],
)
def test_query_prints_csv_and_json(run: str, form: str, wanted: str) -> None:
    sql = "select caption, score from verdicts where caption_id = 'a'"
    assert crossaudit("query", run, sql, "--format", form).stdout == wanted


def test_query_prints_a_table_and_says_what_is_wrong_with_a_query(run: str) -> None:
    shown = crossaudit("query", run, "select caption, row_count from verdicts order by all")
    assert shown.returncode == 0
    body = [line.split("│")[1:3] for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in body] == [["caption a", "1"], ["caption b", "1"]]
    failed = crossaudit("query", run, "from verdict")
    assert failed.returncode == 1
    assert "verdict" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_check_exits_with_1_where_the_accounting_does_not_close(run: str) -> None:
    shown = crossaudit("check", run)
    assert shown.returncode == 1
    assert any(line.startswith("WRONG") and "0 rows + 0 in errors" in line for line in shown.stdout.splitlines())
    assert any(line.startswith("ok") for line in shown.stdout.splitlines())


def test_what_is_no_run_exits_with_1(tmp_path: Path) -> None:
    for arguments in (("check",), ("report",), ("query",), ("mitigate",)):
        extra = ("select 1",) if arguments == ("query",) else ()
        assert crossaudit(*arguments, str(tmp_path / "nothing"), *extra).returncode == 1


def test_detectors_are_listed_with_cost_and_source() -> None:
    shown = crossaudit("detectors")
    assert shown.returncode == 0
    for words in ("profile", "noise_alignment", "bright_ending", "Webster 2023", "(mask"):
        assert words in shown.stdout
    [default] = [line for line in shown.stdout.splitlines() if "the default" in line]
    assert default.startswith(DEFAULT_DETECTOR)


def test_detectors_are_marked_for_a_family_without_planted_models(tmp_path: Path) -> None:
    flux = tiny_flux(tmp_path / "flux", DATA / "tiny-sd1/tokenizer")
    assert "uncalibrated" not in crossaudit("detectors", "--model", DATA / "tiny-sd1").stdout
    lines = crossaudit("detectors", "--model", flux).stdout.splitlines()
    [response] = [line for line in lines if line.startswith("caption_response ")]
    [attention] = [line for line in lines if line.startswith("attention_profile ")]
    assert "uncalibrated evidence" in attention
    assert "uncalibrated evidence" not in response


@pytest.mark.slow
def test_explain_writes_one_page(tmp_path: Path) -> None:
    control, page = tmp_path / "control.txt", tmp_path / "page.html"
    control.write_text("a cat\n\na house\n")
    shown = crossaudit("explain", MODEL, "a red dog 🐕", "--controls", str(control), "--steps", "2", "--out", str(page))
    assert (shown.returncode, shown.stdout.strip()) == (0, str(page))
    assert "follow the caption: 2 steps, " in shown.stderr
    assert "Warning" not in shown.stderr
    assert "a red dog 🐕" in page.read_text(encoding="utf-8")
    control.write_text("\n")
    empty = crossaudit("explain", MODEL, "a dog", "--controls", str(control))
    assert empty.returncode == 2
    assert "no control captions" in empty.stderr


@pytest.mark.slow
def test_layers_of_a_model_are_shown_by_timestep(tmp_path: Path) -> None:
    captions, control, out = tmp_path / "captions.txt", tmp_path / "control.txt", tmp_path / "layers.parquet"
    captions.write_text("a red dog\na dog\n")
    control.write_text("a cat\na house\n")
    shown = crossaudit("rank-layers", MODEL, "--captions", str(captions), "--controls", str(control), "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    assert "AUROC of 2 captions against 2 control captions" in shown.stdout
    assert "t = 981" in shown.stdout
    assert pq.read_table(out).num_rows == 8 * 4 * 2
    half = crossaudit("rank-layers", MODEL, "--captions", str(captions))
    assert half.returncode == 2
    assert "--captions and --controls go together" in half.stderr
    assert "this is not a run" in crossaudit("rank-layers", str(tmp_path)).stderr
