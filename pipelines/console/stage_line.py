"""Show one stage: a live line on a terminal, or a line per minute elsewhere, and a last line that stays."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from audit.durations import duration
from pipelines.console.numbers import Numbers, counted, fitting, now
from pipelines.console.terminal import Console, visible

# Seconds between the lines of a stage that runs without a terminal.
EVERY = 60.0
# A rate is shown only after this many seconds of work.
MEASURABLE = 1.0
# Columns of a line: the name, the count, and what is kept for text beside the bar.
NAME, COUNT, UNIT, TIME, TEXT = 10, 9, 16, 12, 56


class StepCount:
    """Count the units that a step has done out of `total`, including `before` from an earlier process.

    Attributes:
        title: The name of the step.
        total: Units in total.
        unit: The plural noun for the units.
        workers: Number of live workers; None if the step uses none.
    """

    def __init__(self, stage: StageLine, title: str, total: int, unit: str, before: int) -> None:
        self._stage, self.title, self.total, self.unit, self._before = stage, title, total, unit, before
        self._done, self._errors = before, 0
        self.workers: int | None = None
        self._began = self._advanced = time.monotonic()

    def advance(self, rows: int, errors: int) -> None:
        """Add finished units and errors."""
        self._done += rows
        self._errors += errors
        self._stage.errors += errors
        self._advanced = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self._began

    def numbers(self) -> Numbers:
        """Return the current progress."""
        new, seconds = self._done - self._before, self._advanced - self._began
        rate = new / seconds if new and seconds >= MEASURABLE else 0.0
        left = None
        if rate and self._done < self.total:
            left = max((self.total - self._done) / rate - (time.monotonic() - self._advanced), 0.0)
        return Numbers(
            step=self.title,
            unit=self.unit,
            done=self._done,
            total=self.total,
            before=self._before,
            errors=self._errors,
            per_second=round(rate, 6),
            eta_seconds=None if left is None else round(left, 1),
            workers=self.workers,
            at=now(),
        )


class StageLine:
    """The line of one stage.

    Attributes:
        name: The name of the stage.
        unit: The plural noun for its rows.
        rows: Number of rows, set before the stage ends; None if it has none.
        errors: Number of errors.
        note: What came out, for the last line.
        activity: What the stage is doing while no step runs.
        step: The step that is running.
        earlier: Whether all steps so far were done by an earlier process; None if there was no step.
    """

    def __init__(self, console: Console, name: str, unit: str) -> None:
        self._console, self.name, self.unit = console, name, unit
        self.rows: int | None = None
        self.errors, self.note, self.activity = 0, "", ""
        self.step: StepCount | None = None
        self.earlier: bool | None = None
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live: Live | None = None
        self._minutes = threading.Thread(target=self._print_minutes, daemon=True)

    def start(self) -> None:
        """Show the stage until `end`."""
        if self._console.is_interactive:
            self._live = Live(get_renderable=self.running, console=self._console, transient=True, refresh_per_second=5)
            self._live.start(refresh=True)
        else:
            self._minutes.start()

    def end(self, failed: bool = False) -> None:
        """Replace what is shown by the last line."""
        if self._live is not None:
            self._live.stop()
            self._console.print(self.last(failed))
            return
        self._ended.set()
        self._minutes.join()
        self._console.print(visible(self.last_in_words(failed)), highlight=False, markup=False, soft_wrap=True)

    def running(self) -> Table:
        """Return the live line: a spinner, the name, a bar, and as much text as there is room for."""
        step = self._numbers()
        width = self._console.width
        bar = min(max(width - NAME - TEXT - 5, 8), 24)
        room = width - NAME - bar - 5
        text = self.activity or (fitting(step.parts(), room) if step else "")
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, min_width=NAME)
        line.add_column(width=bar)
        line.add_column(no_wrap=True, overflow="ellipsis")
        done = (step.total, step.done) if step else (1, 0)
        # Without colours, a pulsing bar would look like a full one.
        pulse = not (step and step.done) and self._console.color_system is not None
        shown = ProgressBar(*done, width=bar, pulse=pulse, finished_style="bar.complete")
        line.add_row(self._spinner, Text(visible(self.name, "")), shown, Text(visible(text, "")))
        return line

    def last(self, failed: bool = False) -> Text:
        """Return the last line: a mark, the name, the rows, the time, the errors, and what came out."""
        marks = ("+", "x") if self._console.options.ascii_only else ("✓", "✗")
        count, _, unit = self._count(failed).partition(" ")
        line = Text.assemble(
            (marks[failed], "red" if failed else "green"),
            f" {visible(self.name, ''):<{NAME}} {count:>{COUNT}} {visible(unit, ''):<{UNIT}} ",
            (f"{self._time():>{TIME}}", "dim" if self.earlier else ""),
        )
        if self.errors:
            line.append(f"  {counted(self.errors, 'errors')}", "red")
        if self.note:
            room = self._console.width - len(line) - 2
            line.append(f"  {self.note}" if len(self.note) <= room else f"\n{'':{NAME + 3}}{self.note}", "dim")
        return line

    def last_in_words(self, failed: bool = False) -> str:
        """Return the last line for a file or a pipe."""
        count = self._count(failed)
        parts = [count] if count else []
        parts += [f"stopped after {self._time()}" if failed else self._time()]
        parts += [counted(self.errors, "errors")] if self.errors else []
        return f"{self.name}: {', '.join(parts)}{f'; {self.note}' if self.note else ''}"

    def _numbers(self) -> Numbers | None:
        """Return the progress of the current step, with the errors of all steps of the stage."""
        step = self.step  # another thread may end the step at any time
        return replace(step.numbers(), errors=self.errors) if step else None

    def _count(self, failed: bool) -> str:
        if failed and (step := self._numbers()):
            return step.parts()[0]
        return "" if self.rows is None else counted(self.rows, self.unit)

    def _time(self) -> str:
        return "done earlier" if self.earlier else duration(time.monotonic() - self._began)

    def _print_minutes(self) -> None:
        while not self._ended.wait(EVERY):
            since = f"running for {duration(time.monotonic() - self._began)}"
            step = self._numbers()
            text = step.line() if step else self.activity or since
            self._console.print(visible(f"{self.name}: {text}"), highlight=False, markup=False, soft_wrap=True)
