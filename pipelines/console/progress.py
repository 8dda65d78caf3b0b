"""Show the progress of a run on standard error, one line per stage. The manifest records the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from audit.durations import duration
from pipelines.console.numbers import counted
from pipelines.console.stage_line import StageLine, StepCount
from pipelines.console.terminal import Console, visible

if TYPE_CHECKING:
    from audit.scoring.progress import Progress as Tell


class Reporter:
    """Show the current stage, which the steps of a run feed.

    Args:
        console: Where to print (default: standard error).
        verbose: Whether to show internal steps too.
    """

    def __init__(self, console: Console | None = None, verbose: bool = False) -> None:
        self._console, self._verbose = console or Console(stderr=True), verbose
        self._stage: StageLine | None = None

    def say(self, line: str) -> None:
        """Print a line. Only a terminal needs it wrapped."""
        console = self._console
        console.print(visible(line), highlight=False, markup=False, soft_wrap=not console.is_terminal)

    def detail(self, line: str) -> None:
        """Print a line about an internal step, if the user asked for them."""
        if self._verbose:
            self.say(line)

    def note(self, text: str) -> None:
        """Say what the current stage found. The last line of the stage shows it."""
        if self._stage is None:
            self.say(text)
        else:
            self._stage.note = text

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[StageLine]:
        """Show a stage while the context lasts, and leave its last line.

        Args:
            name: The name of the stage.
            unit: The plural noun for its rows. The caller sets the `rows` and `errors` of the stage.
        """
        stage = self._stage = StageLine(self._console, name, unit)
        stage.start()
        failed = True
        try:
            yield stage
            failed = False
        finally:
            self._stage = None
            stage.end(failed)

    @contextmanager
    def step(self, title: str, total: int, unit: str, before: int = 0) -> Iterator[StepCount]:
        """Count the units of a step of the current stage. Without a stage, the step is shown as one.

        Args:
            title: The name of the step.
            total: Units in total.
            unit: The plural noun for the units.
            before: Units that an earlier process did.
        """
        if self._stage is None:
            with self.stage(title.partition(":")[0], unit) as alone, self.step(title, total, unit, before) as count:
                yield count
                alone.rows = total
            return
        stage, count = self._stage, StepCount(self._stage, title, total, unit, before)
        stage.step, stage.earlier = count, False
        yield count  # after an error, the last line of the stage shows how far the step was
        stage.step = None
        self.detail(f"  {title}: {counted(total, unit)}, {duration(count.seconds)}")

    def skip(self, title: str, total: int, unit: str) -> None:
        """Say that an earlier process did a step completely."""
        self.detail(f"  {title}: {counted(total, unit)}, done earlier")
        if self._stage is not None:
            self._stage.earlier = self._stage.earlier is not False

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show on a terminal what is being done while no step runs."""
        self.detail(f"  {what}")
        stage = self._stage
        if stage is None:
            with _spinning(self._console, what):
                yield
            return
        stage.activity = what
        try:
            yield
        finally:
            stage.activity = ""


@contextmanager
def told() -> Iterator[Tell]:
    """Show the progress of a computation in `audit` on standard error, one stage per step."""
    reporter = Reporter()
    with ExitStack() as open_step:
        count: StepCount | None = None
        last = 0

        def tell(title: str, unit: str, done: int, total: int) -> None:
            nonlocal count, last
            if count is None or title != count.title:
                open_step.close()
                count, last = open_step.enter_context(reporter.step(title, total, unit)), 0
            count.advance(done - last, 0)
            last = done

        yield tell


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner on a terminal during work that reports no progress."""
    with _spinning(Console(stderr=True), what):
        yield


@contextmanager
def _spinning(console: Console, what: str) -> Iterator[None]:
    if not console.is_interactive:
        yield
        return
    with console.status(f"{visible(what)} ..."):
        yield
