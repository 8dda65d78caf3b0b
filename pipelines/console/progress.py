"""Show the progress of a run: bars on a terminal, otherwise one line per minute. The manifest records the same."""

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
    """The progress of a step.

    Attributes:
        step: The name of the step.
        unit: The plural noun for its units.
        done: Units done, including `before`.
        total: Units in total.
        before: Units that an earlier process did.
        errors: Errors in this process.
        per_second: Units per second in this process.
        eta_seconds: Estimated seconds left; None before this process has done anything.
        workers: Number of live workers; None if the step uses none.
        at: When these numbers were taken.
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
        """Return a readable summary of everything except `done` and `total`."""
        parts = [f"{self.per_second:,.1f} {self.unit}/s"]
        parts += [f"{self.errors:,} errors"] if self.errors else []
        if self.done < self.total:
            parts += [f"{duration(self.eta_seconds)} left"] if self.eta_seconds is not None else []
            parts += [f"{self.workers:,} worker{'s' * (self.workers != 1)}"] if self.workers is not None else []
        parts += [f"{self.before:,} already done"] if self.before else []
        return ", ".join(parts)


class Stage:
    """One line of progress: the units done out of `total`, including `before` from an earlier process, and errors."""

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
        """Add finished rows and errors."""
        self._done += rows
        self._errors += errors

    def show(self, workers: int | None = None) -> None:
        """Show the progress and the number of live workers: update the bar, or print at most one line per minute."""
        self._workers = workers
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self.numbers().line())
        elif time.monotonic() - self._shown > EVERY and self._done < self._total:
            self._shown = time.monotonic()
            where = f"{self._done:,} of {self._total:,}"
            self._console.print(f"{self._title}: {where}, {self.numbers().line()}", highlight=False)

    def close(self) -> None:
        """Remove the bar, or print a last line."""
        if self._bar:
            self._bar.stop()
        else:
            self._console.print(f"{self._title}: done, {self.numbers().line()}", highlight=False)

    def numbers(self) -> Numbers:
        """Return the current progress."""
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
    """Show the progress of a run on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(visible(line), highlight=False, markup=False)

    @contextmanager
    def stage(self, title: str, total: int, unit: str, before: int = 0) -> Iterator[Stage]:
        """Show one line of progress while the context lasts.

        Args:
            title: The name of the step.
            total: Units in total.
            unit: The plural noun for the units.
            before: Units that an earlier process did.
        """
        stage = Stage(self._console, title, total, unit, before)
        try:
            yield stage
        finally:
            stage.close()


@contextmanager
def told() -> Iterator[Tell]:
    """Show the progress of a computation in `audit` on standard error, one stage per step."""
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
    """Show a spinner on a terminal during work that reports no progress."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{visible(what)} ..."):
        yield


def now() -> str:
    """Return the current time in UTC, in the format of the manifest."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Format seconds for people: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
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
