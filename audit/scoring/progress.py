"""Report the progress of a long computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from audit.detectors.detector import TrajectoryStep

# Called with the step, the unit it counts, how many units are done, and how many there are.
Progress = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class CountSteps:
    """Follow a run as a detector does, and report after each step how many steps of all rows are done.

    Attributes:
        progress: Called with the counts.
        title: Name of the task.
        at: Rows of the batch.
        steps: Steps per row.
        total: Number of rows in all batches.
    """

    needs_attention: ClassVar[bool] = False
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False

    progress: Progress
    title: str
    at: slice
    steps: int
    total: int

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Report that one step of the batch is done."""
        rows = self.at.stop - self.at.start
        self.progress(self.title, "steps", self.at.start * self.steps + (step + 1) * rows, self.total * self.steps)
