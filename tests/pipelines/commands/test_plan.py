"""`crossaudit plan`: what a user reads, in a pipe of 100 columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.called import crossaudit
from tests.support.paths import DATA


@pytest.mark.slow
def test_hours_and_dollars_of_each_stage_and_what_could_be_claimed(
    make_dataset: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = str(make_dataset(tmp_path))
    settings = ("--set", "engine.workers=4", "--set", f"model={DATA / 'tiny-sd1'}")
    shown = crossaudit("plan", path, "--tflops", "0.001", "--gpus", "2", "--price", "3", *settings)
    assert shown.returncode == 0, shown.stderr
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert max(map(len, lines)) <= 100
    assert "- captions: 40 rows in 2 files; at most 40 captions, if all are distinct" in lines
    assert "- images: 40 images in 2 files" in lines
    assert any("0.001 TFLOP/s sustained (--tflops)" in line and "assumed" in line for line in lines)
    [head] = [line for line in lines if line.startswith("stage")]
    assert head.split("  ")[0] == "stage"
    assert "core-hours" in head
    assert "dollars" in head
    rows = {
        line.split()[0]: line.replace("< ", "<").split()
        for line in lines[lines.index(head) + 1 :]
        if line and line[0] not in "-+ "
    }
    assert list(rows)[:8] == ["ingest", "embed", "cluster", "calibrate", "screen", "generate", "confirm", "total"]
    assert rows["screen"][1:4] == ["40", "captions", "2"]
    # Hours that round to nothing are shown as "<0.01".
    screened, total = (float(rows[name][-4].lstrip("<")) for name in ("screen", "total"))
    assert float(rows["total"][-3]) == pytest.approx(3 * total, rel=0.01)
    assert 0 < screened < total
    assert any(line.startswith("+ per 100 confirmed") for line in lines)
    assert any(line.startswith("- with 2 workers the audit takes") for line in lines)
    assert any("at most 57,143 per million of the 35 captions" in line for line in lines)
    assert any("confirm.control_rate 0.05 needs 38 of them: enough" in line for line in lines)
    plain = crossaudit("plan", path, "--tflops", "0.001", "--set", "engine.gpus_per_worker=1")
    assert "GPU-hours" in plain.stdout
    assert "dollars" not in plain.stdout
    assert "with 1 worker the audit takes" in plain.stdout


@pytest.mark.slow
def test_mistakes_exit_as_those_of_run_do(tmp_path: Path) -> None:
    (tmp_path / "audit.yaml").write_text("model: x\n")
    failed = crossaudit("plan", str(tmp_path / "audit.yaml"))
    assert failed.returncode == 2
    assert "captions is missing" in failed.stderr
    assert crossaudit("plan", str(tmp_path / "audit.yaml"), "--gpus", "0").returncode == 2
