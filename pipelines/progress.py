"""What a run shows while it goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

EVERY = 5.0


class Stage:
    """One row of progress: `unit`s done of `total`, `before` of them by an earlier run, and errors so far."""

    def __init__(self, console: Console, title: str, total: int, unit: str, before: int) -> None:
        self._console, self._title, self._total, self._unit, self._before = console, title, total, unit, before
        self._done, self._errors = before, 0
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=total, completed=before, note="")
            self._bar.start()
        else:
            console.print(f"{title}: {total:,} {unit}", highlight=False)

    def advance(self, rows: int, errors: int) -> None:
        self._done += rows
        self._errors += errors
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self._note())
        elif time.monotonic() - self._shown > EVERY and self._done < self._total:
            self._shown = time.monotonic()
            self._console.print(f"{self._title}: {self._done:,} of {self._total:,}, {self._note()}", highlight=False)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._console.print(f"{self._title}: done, {self._note()}", highlight=False)

    def _note(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        parts = [f"{(self._done - self._before) / seconds:,.1f} {self._unit}/s"]
        parts += [f"{self._before:,} from before"] if self._before else []
        parts += [f"{self._errors:,} errors"] if self._errors else []
        return ", ".join(parts)


class Reporter:
    """Where a run's progress goes: standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    @contextmanager
    def stage(self, title: str, total: int, unit: str, before: int = 0) -> Iterator[Stage]:
        stage = Stage(self._console, title, total, unit, before)
        try:
            yield stage
        finally:
            stage.close()
