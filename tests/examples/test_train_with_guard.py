"""The example trains, and the model that it saves is one that the audit loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import audit
from tests.support.paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True])
def test_two_lines_in_an_ordinary_training_loop(tmp_path: Path, control: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (48, 40), colour).save(data / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {colour} square"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    command = [sys.executable, ROOT / "examples/train_with_guard.py", "--model", ROOT / "tests/data/tiny-sd1"]
    command += ["--data", data, "--out", tmp_path / "out", "--steps", "3", "--batch-size", "2"]
    if control:
        (tmp_path / "control.txt").write_text("a yellow circle\na black line\n")
        command += ["--control-captions", tmp_path / "control.txt"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 6 samples had no weight" in done.stdout  # a quantile silences nothing while it warms up
    assert pq.read_table(tmp_path / "out/guard")["seen"].to_pylist() == [2, 2, 2]
    audit.screen(audit.load_model(tmp_path / "out"), ["a red square"])
