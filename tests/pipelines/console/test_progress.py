"""What a run shows of its stages and steps."""

from __future__ import annotations

import io
import re
import threading

import pytest

from audit.errors import AuditError
from pipelines.console import progress, stage_line
from pipelines.console.progress import Reporter
from pipelines.console.stage_line import StageLine, StepCount
from pipelines.console.terminal import Console
from tests.support.screen import screen


def reporter(terminal: bool = False, verbose: bool = False, width: int = 80) -> tuple[Reporter, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, width=width, force_terminal=terminal, color_system=None)
    return Reporter(console, verbose), said


def test_a_stage_is_one_line_with_what_its_steps_did_not_say() -> None:
    told, said = reporter()
    with told.stage("ingest", "rows") as stage:
        with told.step("ingest: shared keys", 1, "ranges") as count:
            count.advance(1, 0)
        assert stage.step is None
        told.skip("ingest: groups", 8, "captions")
        told.note("every row has its own image")
        stage.rows, stage.errors = 3086, 1
    assert re.fullmatch(r"ingest: 3,086 rows, [\d.]+ s, 1 error; every row has its own image\n", said.getvalue())


def test_internal_steps_are_shown_on_request() -> None:
    told, said = reporter(verbose=True)
    with told.stage("ingest", "rows"):
        with told.step("ingest: shared keys", 1, "ranges") as count:
            count.advance(1, 0)
        told.skip("ingest: groups", 8, "captions")
        with told.waiting("loading model"):
            pass
    first, *others, _ = said.getvalue().splitlines()
    assert re.fullmatch(r"  ingest: shared keys: 1 range, [\d.]+ s", first)
    assert others == ["  ingest: groups: 8 captions, done earlier", "  loading model"]


@pytest.mark.parametrize(("worked", "time"), [(False, "done earlier"), (True, r"[\d.]+ s")])
def test_only_a_stage_whose_steps_were_all_done_earlier_says_so(worked: bool, time: str) -> None:
    told, said = reporter()
    with told.stage("screen", "captions") as stage:
        told.skip("screen: first", 5, "captions")
        if worked:
            with told.step("screen", 5, "captions"):
                pass
        told.skip("screen: last", 5, "captions")
        stage.rows = 5
    assert re.fullmatch(f"screen: 5 captions, {time}\n", said.getvalue())


def test_a_stage_that_fails_says_how_far_it_was() -> None:
    told, said = reporter()

    def fail() -> None:
        with told.stage("screen", "captions"), told.step("screen", 8, "captions") as count:
            count.advance(3, 0)
            raise AuditError("no room")

    with pytest.raises(AuditError):
        fail()
    assert re.fullmatch(r"screen: 3 of 8 captions, stopped after [\d.]+ s\n", said.getvalue())


def test_a_step_outside_of_a_stage_is_shown_as_a_stage() -> None:
    told, said = reporter()
    with told.step("index: sscd", 1, "embedders") as count:
        count.advance(1, 0)
    assert re.fullmatch(r"index: 1 embedder, [\d.]+ s\n", said.getvalue())


def test_numbers_are_of_this_process_and_the_rest_takes_as_long() -> None:
    stage = StageLine(Console(file=io.StringIO()), "screen", "captions")
    count = StepCount(stage, "screen", 1000, "captions", 400)
    count._began -= 10.0
    assert (count.numbers().done, count.numbers().eta_seconds, count.numbers().workers) == (400, None, None)
    count.advance(100, 2)
    count.workers = 3
    numbers = count.numbers()
    assert (numbers.step, numbers.unit, numbers.done, numbers.total) == ("screen", "captions", 500, 1000)
    assert (numbers.before, numbers.errors, numbers.workers) == (400, 2, 3)
    assert numbers.per_second == pytest.approx(10, rel=0.1)
    assert numbers.eta_seconds == pytest.approx(50, rel=0.1)


def test_what_took_milliseconds_has_no_rate() -> None:
    stage = StageLine(Console(file=io.StringIO()), "embed", "images")
    count = StepCount(stage, "embed", 20_000, "images", 0)
    count.advance(10_000, 0)
    assert (count.numbers().per_second, count.numbers().eta_seconds) == (0.0, None)


def test_errors_add_up_over_the_steps_of_a_stage() -> None:
    told, said = reporter()

    def fail() -> None:
        with told.stage("ingest", "rows"):
            for number in (1, 2):
                with told.step("ingest: rows", 8, "rows") as count:
                    count.advance(4, number)
                    assert count.numbers().errors == number
            raise AuditError("no room")

    with pytest.raises(AuditError):
        fail()
    assert said.getvalue().endswith("s, 3 errors\n")


def test_without_a_terminal_a_running_stage_has_a_line_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = threading.Event()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if "5 of 8" in self.getvalue():
                printed.set()
            return written

    monkeypatch.setattr(stage_line, "EVERY", 0.01)
    said = Watched()
    told = Reporter(Console(file=said, width=80))
    with told.stage("screen", "captions"), told.step("screen", 8, "captions") as count:
        count.advance(5, 1)
        count.workers = 2
        assert printed.wait(30)
    assert "screen: 5 of 8 captions, 1 error, 2 workers\n" in said.getvalue()
    assert "running for" not in said.getvalue().splitlines()[-1]


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_running_stage_is_one_line_with_a_bar(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    stage = StageLine(console, "screen", "captions")
    stage.errors = 2  # of an earlier step
    stage.step = StepCount(stage, "screen", 200_000_000, "captions", 0)
    stage.step._began -= 86_400.0
    stage.step.advance(50_000_000, 5)
    stage.step.workers = 128
    with console.capture() as captured:
        console.print(stage.running())
    [line] = captured.get().splitlines()
    assert "━" in line
    assert "50,000,000 of 200,000,000 captions, 7 errors" in line
    assert ("579/s, 3 d 0 h left, 128 workers" in line) == (width == 120)
    assert len(line) <= width
    assert "…" not in line


@pytest.mark.parametrize("failed", [False, True])
def test_on_a_terminal_the_last_line_stays_and_the_bar_does_not(failed: bool) -> None:
    told, said = reporter(terminal=True)
    try:
        with told.stage("screen", "captions") as stage, told.step("screen", 8, "captions") as count:
            count.advance(4, 1)
            stage.rows = 8
            told.say("a warning")
            if failed:
                raise AuditError("no room")
    except AuditError:
        pass
    assert re.search("[⠀-⣿] screen", said.getvalue())
    warning, line, *empty = screen(said.getvalue())
    assert warning == "a warning"
    assert not any(empty)
    shown = r"✗ screen +4 of 8 captions +[\d.]+ s  1 error" if failed else r"✓ screen +8 captions +[\d.]+ s  1 error"
    assert re.fullmatch(shown, line)


def test_a_note_that_does_not_fit_gets_a_line_of_its_own() -> None:
    stage = StageLine(Console(file=io.StringIO(), width=80), "select", "captions")
    stage.rows, stage.note = 3086, "500 selected: 450 by score, 50 at random"
    first, second = stage.last().plain.splitlines()
    assert first.startswith("✓ select         3,086 captions")
    assert second.strip() == stage.note
    stage.note = "500 selected"
    assert stage.last().plain.endswith("s  500 selected")


def test_terminals_without_unicode_get_ascii() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), "ascii"), width=80, force_terminal=True)
    stage = StageLine(console, "screen", "captions")
    assert (stage.last().plain + stage.last(failed=True).plain).isascii()
    with console.capture() as captured:
        console.print(stage.running())
    assert re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).isascii()


def test_a_calculation_shows_its_steps_as_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.told() as tell:
        tell("follow the caption", "steps", 1, 2)
        tell("follow the caption", "steps", 2, 2)
        tell("screen", "rows", 16, 32)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("follow the caption: 2 steps, ")
    assert second.startswith("screen: 32 rows, ")


def test_waiting_is_shown_on_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.waiting("loading"):
        pass
    told, said = reporter()
    with told.waiting("loading"):
        pass
    assert capsys.readouterr() == ("", "")
    assert said.getvalue() == ""
