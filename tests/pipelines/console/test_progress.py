"""What a run says while it goes on."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.console import progress
from pipelines.console.progress import Reporter, duration


def reporter(terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    said = io.StringIO()
    return Reporter(Console(file=said, width=160, force_terminal=terminal)), said


def test_numbers_are_of_this_run_and_the_rest_takes_as_long() -> None:
    with reporter()[0].stage("screen", 1000, "captions", before=400) as stage:
        assert (stage.numbers().done, stage.numbers().eta_seconds, stage.numbers().workers) == (400, None, None)
        stage.advance(100, 2)
        stage.show(workers=3)
        numbers = stage.numbers()
    assert (numbers.step, numbers.unit, numbers.done, numbers.total) == ("screen", "captions", 500, 1000)
    assert (numbers.before, numbers.errors, numbers.workers) == (400, 2, 3)
    assert numbers.eta_seconds == pytest.approx(500 / numbers.per_second, rel=0.01, abs=0.1)
    line = numbers.line()
    assert "captions/s, 2 errors, " in line
    assert line.endswith(" left, 3 workers, 400 already done")


def test_what_is_done_has_no_time_left_and_no_workers() -> None:
    with reporter()[0].stage("embed", 10, "images") as stage:
        stage.advance(10, 0)
        stage.show(workers=1)
        line = stage.numbers().line()
    assert line.endswith("images/s")


def test_off_a_terminal_a_line_comes_when_a_minute_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    told, said = reporter()
    with told.stage("screen", 8, "captions") as stage:
        stage.advance(4, 0)
        stage.show(workers=2)
        assert said.getvalue() == "screen: 8 captions\n"
        monkeypatch.setattr(progress, "EVERY", -1.0)
        stage.show(workers=2)
    lines = said.getvalue().splitlines()
    assert lines[1].startswith("screen: 4 of 8, ")
    assert lines[1].endswith("2 workers")
    assert lines[2].startswith("screen: done, ")


def test_on_a_terminal_there_is_a_bar_with_the_same() -> None:
    told, said = reporter(terminal=True)
    with told.stage("screen", 8, "captions") as stage:
        stage.advance(4, 1)
        stage.show(workers=2)
    assert "4/8" in said.getvalue()
    assert "1 errors" in said.getvalue()
    assert "2 workers" in said.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (12_000, "3 h 20 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_a_time_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@given(st.floats(0, 1e9))
def test_no_unit_overflows(seconds: float) -> None:
    words = duration(seconds).split()
    most = {"s": 90, "min": 90 if len(words) == 2 else 60, "h": 48 if words[1] == "h" else 24, "d": 1e9}
    assert all(int(number) < most[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


def test_a_calculation_tells_its_steps_as_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its steps with its total at the beginning, however it is counted, and its end."""
    with progress.told() as tell:
        tell("follow the caption", "steps", 1, 2)
        assert capsys.readouterr().err == "follow the caption: 2 steps\n"
        tell("follow the caption", "steps", 2, 2)
        tell("screen", "rows", 16, 32)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("follow the caption: done")
    assert second == "screen: 32 rows"
    assert third.startswith("screen: done")


def test_waiting_is_shown_on_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.waiting("loading"):
        pass
    assert capsys.readouterr() == ("", "")
