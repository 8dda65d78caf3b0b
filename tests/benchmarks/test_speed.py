"""The program runs, and writes what its page reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.defaults import DEFAULT_DETECTOR
from benchmarks import speed, speed_page


@pytest.mark.slow
def test_the_published_architectures_are_counted_without_weights(tmp_path: Path) -> None:
    speed.main(["--arch", "sd15", "--count", "--detectors", "--out", str(tmp_path)])
    (found,) = speed_page.read(tmp_path / "counted")
    assert found["tflop"]["released code"] == pytest.approx(80.3, rel=0.05)
    assert found["tflop"]["text encoder"] == pytest.approx(2 * 77 * 85e6 / 1e12, rel=0.03)
    assert found["tflop"]["UNet"] == pytest.approx(0.80, rel=0.01)
    assert found["tflop"]["UNet to the 4th cross-attention"] == pytest.approx(0.163, rel=0.05)


@pytest.mark.slow
def test_one_round_on_the_smallest_model(tmp_path: Path) -> None:
    settings = ["--rounds", "1", "--steps", "1", "--images", "1", "--batch", "1", "--peak", "64"]
    speed.main([*settings, "--detectors", "noise_magnitude", "--out", str(tmp_path)])
    (result,) = speed_page.read(tmp_path)
    assert {f"screen, {name}" for name in (DEFAULT_DETECTOR, "noise_magnitude")} <= result["tasks"].keys()
    assert all(len(task["seconds"]) == 1 for kind in ("tasks", "parts") for task in result[kind].values())
    full, half = (result["tasks"][f"screen, {DEFAULT_DETECTOR}{half}"]["tflop"] for half in ("", speed.HALF))
    assert 0.2 * full < half < 0.5 * full
    assert result["tasks"]["released code"]["scaled"]
    assert "scaled to 50" in speed_page.tables([result], [])["speed-tiny-sd1-cpu-float32"]
