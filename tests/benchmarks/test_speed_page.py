"""README and the page on performance have the recorded figures."""

from __future__ import annotations

import pytest

from benchmarks import speed_page
from benchmarks.speed import RESULTS


def task(*seconds: float, tflop: float = 0.1) -> dict[str, object]:
    return {"seconds": list(seconds), "captions": 1, "tflop": tflop, "scaled": False}


RESULT = {
    "arch": "demo",
    "device": "cpu",
    "dtype": "float32",
    "compile": False,
    "rounds": 3,
    "steps": 50,
    "batch": 16,
    "machine": {"name": "a processor", "torch": "2", "threads": 1, "clock": "CPU time"},
    "default": ["profile"],
    "peak_tflops": 0.2,
    "peak_memory_gib": 1.0,
    "tasks": {
        "released code": task(8.0, 10.0, 12.0),
        "plain diffusers, batch 1": task(4.0, 5.0, 6.0),
        "screen, profile": task(0.1, 0.1, 0.4),
    },
    "parts": {"UNet": task(1.0, 1.0, 1.0)},
}


def test_ratios_are_medians_of_the_rounds() -> None:
    line = speed_page.tasks(RESULT).splitlines()[-1]
    assert line == "| screen, `profile` | 100 ms (100 ms to 250 ms) | 0.1 TFLOP | 1 (500 %) | 40 | 80 |"
    assert speed_page.parts(RESULT).splitlines()[-1] == "| UNet | 1 s (1 s to 1 s) | 0.1 TFLOP | 0.1 (50 %) |"


def test_the_headline_is_the_default_screen() -> None:
    assert [line.split("|")[1].strip() for line in speed_page.headline([RESULT]).splitlines()[2:]] == [
        "demo's model, float32, a processor: released code",
        "demo's model, float32, a processor: plain diffusers, batch 1",
        "demo's model, float32, a processor: screen, `profile`",
    ]


def test_counts_are_compared_with_the_released_code() -> None:
    counts = [{"arch": "sd15", "tflop": {"released code": 80.3, "screen, profile": 6.45, "UNet": 0.8, "PNG": 0.0}}]
    assert speed_page.counted(counts).splitlines() == [
        "| | SD 1.5 |",
        "|---|---|",
        "| released code | 80.3 TFLOP |",
        "| screen, `profile` | 6.45 TFLOP (12.4 times less) |",
        "| UNet | 0.8 TFLOP |",
    ]


def test_what_is_not_measured_is_said() -> None:
    assert set(speed_page.tables([], []).values()) == {speed_page.NOT_YET}


@pytest.mark.parametrize("page", speed_page.PAGES, ids=lambda page: page.name)
def test_the_pages_have_the_recorded_figures(page) -> None:
    text = page.read_text("utf-8")
    found = speed_page.tables(speed_page.read(RESULTS), speed_page.read(RESULTS / "counted"))
    assert "<!-- table: speed" in text
    assert speed_page.insert(text, found) == text
