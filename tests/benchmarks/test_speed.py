"""The program runs, and writes what its page reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.defaults import DEFAULT_DETECTOR
from benchmarks import speed, speed_page
from benchmarks.architectures import FOLDERS, outline
from tests.support.toy import MODEL


@pytest.mark.slow
def test_the_published_architectures_are_counted_without_weights() -> None:
    shape = outline("sd15")
    tasks = speed.generations(shape, shape, batch=8, steps=50) | speed.parts(shape, shape, batch=16)
    tflop = {name: task.flops / 1e12 for name, task in tasks.items()}
    assert tflop["released code"] == pytest.approx(80.3, rel=0.05)
    assert tflop["text encoder"] == pytest.approx(2 * 77 * 85e6 / 1e12, rel=0.03)
    assert tflop["UNet"] == pytest.approx(0.80, rel=0.01)
    assert tflop["UNet to the 4th cross-attention"] == pytest.approx(0.163, rel=0.05)


def test_one_round_on_a_small_model_and_what_is_counted_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOLDERS, "tiny-sd1", MODEL)
    settings = ["--rounds", "1", "--steps", "1", "--images", "1", "--batch", "1", "--peak", "64"]
    speed.main([*settings, "--detectors", "attention_profile_early", "--out", str(tmp_path)])
    (result,) = speed_page.read(tmp_path)
    assert {f"screen, {name}" for name in (DEFAULT_DETECTOR, "attention_profile_early")} <= result["tasks"].keys()
    assert all(len(task["seconds"]) == 1 for kind in ("tasks", "parts") for task in result[kind].values())
    full, half = (result["tasks"][f"screen, {DEFAULT_DETECTOR}{half}"]["tflop"] for half in ("", speed.HALF))
    assert 0.2 * full < half < 0.5 * full
    assert result["tasks"]["released code"]["scaled"]
    speed.main(["--count", "--detectors", "--out", str(tmp_path)])
    (counted,) = speed_page.read(tmp_path / "counted")
    for name, task in (result["parts"] | {"released code": result["tasks"]["released code"]}).items():
        assert counted["tflop"][name] == task["tflop"]
    assert "scaled to 50" in speed_page.tables([result], [])["speed-tiny-sd1-cpu-float32"]
