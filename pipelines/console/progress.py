"""What a run shows while it goes on: bars on a terminal, elsewhere a line a minute; the manifest has the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from pipelines.console.terminal import Console, visible

if TYPE_CHECKING:
    from audit.scoring.progress import Progress as Tell

EVERY = 60.0


@dataclass(frozen=True)
class Numbers:
    """How far a step is at the time `at`: `done` of `total` units, `before` of them by an earlier run.

    `errors`, `per_second`: of this one; `eta_seconds`: None before anything is done; `workers` alive: None without any.
    """

    step: str
    unit: str
    done: int
    total: int
    before: int
    errors: int
    per_second: float
    eta_seconds: float | None
    workers: int | None
    at: str

    def line(self) -> str:
        """All but done and total, for people."""
        parts = [f"{self.per_second:,.1f} {self.unit}/s"]
        parts += [f"{self.errors:,} errors"] if self.errors else []
        if self.done < self.total:
            parts += [f"{duration(self.eta_seconds)} left"] if self.eta_seconds is not None else []
            parts += [f"{self.workers:,} worker{'s' * (self.workers != 1)}"] if self.workers is not None else []
        parts += [f"{self.before:,} from before"] if self.before else []
        return ", ".join(parts)


class Stage:
    """One row of progress: `unit`s done of `total`, `before` of them by an earlier run, and errors so far."""

    def __init__(self, console: Console, title: str, total: int, unit: str, before: int) -> None:
        self._console, self._title, self._total, self._unit, self._before = console, title, total, unit, before
        self._done, self._errors = before, 0
        self._workers: int | None = None
        self._began = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(title, total=total, completed=before, note="")
            self._bar.start()
        else:
            console.print(f"{title}: {total:,} {unit}", highlight=False)

    def advance(self, rows: int, errors: int) -> None:
        self._done += rows
        self._errors += errors

    def show(self, workers: int | None = None) -> None:
        """Tells where it is, with so many workers alive: a bar at once, a line when a minute has passed."""
        self._workers = workers
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self.numbers().line())
        elif time.monotonic() - self._shown > EVERY and self._done < self._total:
            self._shown = time.monotonic()
            where = f"{self._done:,} of {self._total:,}"
            self._console.print(f"{self._title}: {where}, {self.numbers().line()}", highlight=False)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._console.print(f"{self._title}: done, {self.numbers().line()}", highlight=False)

    def numbers(self) -> Numbers:
        new = self._done - self._before
        rate = new / max(time.monotonic() - self._began, 1e-3)
        return Numbers(
            step=self._title,
            unit=self._unit,
            done=self._done,
            total=self._total,
            before=self._before,
            errors=self._errors,
            per_second=round(rate, 3),
            eta_seconds=round((self._total - self._done) / rate, 1) if new else None,
            workers=self._workers,
            at=now(),
        )


class Reporter:
    """Where a run's progress goes: standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        self._console.print(visible(line), highlight=False, markup=False)

    @contextmanager
    def stage(self, title: str, total: int, unit: str, before: int = 0) -> Iterator[Stage]:
        stage = Stage(self._console, title, total, unit, before)
        try:
            yield stage
        finally:
            stage.close()


@contextmanager
def told() -> Iterator[Tell]:
    """Show on standard error how far a calculation of `audit` is, each of its steps as a stage."""
    reporter = Reporter()
    with ExitStack() as open_stage:
        stage: Stage | None = None
        step: str | None = None
        last = 0

        def tell(title: str, unit: str, done: int, total: int) -> None:
            nonlocal stage, step, last
            if stage is None or title != step:
                open_stage.close()
                stage, step, last = open_stage.enter_context(reporter.stage(title, total, unit)), title, 0
            stage.advance(done - last, 0)
            last = done
            stage.show()

        yield tell


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something goes on that cannot tell how far it is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{visible(what)} ..."):
        yield


def now() -> str:
    """The time, as a manifest has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
