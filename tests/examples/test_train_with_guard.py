"""The example trains, and the model that it saves is one that the audit loads."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import audit
from tests.support.paths import ROOT
from tests.support.toy import MODEL


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True])
def test_two_lines_in_an_ordinary_training_loop(
    tmp_path: Path, control: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (48, 40), colour).save(data / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {colour} square"}))
    (data / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["--model", MODEL, "--data", data, "--out", tmp_path / "out", "--steps", "3", "--batch-size", "2"]
    if control:
        (tmp_path / "control.txt").write_text("a yellow circle\na black line\n")
        arguments += ["--control-captions", tmp_path / "control.txt"]
    monkeypatch.setattr(sys, "argv", ["train_with_guard.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples/train_with_guard.py"), run_name="__main__")
    assert "0 of 6 samples had no weight" in capsys.readouterr().out  # a quantile silences nothing while it warms up
    assert pq.read_table(tmp_path / "out/guard")["seen"].to_pylist() == [2, 2, 2]
    audit.screen(audit.load_model(tmp_path / "out"), ["a red square"])
