"""Say how far a step is: counts, rates and remaining time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from audit.durations import duration


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
        per_second: Units per second in this process; 0 if the step has not run long enough to measure it.
        eta_seconds: Estimated seconds left; None without a rate.
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

    def parts(self) -> list[str]:
        """Return what there is to say, the most important first."""
        parts = [f"{self.done:,} of {counted(self.total, self.unit)}"]
        parts += [counted(self.errors, "errors")] if self.errors else []
        parts += [rate(self.per_second)] if self.per_second else []
        parts += [f"{duration(left)} left"] if (left := round(self.eta_seconds or 0)) else []
        parts += [counted(self.workers, "workers")] if self.workers is not None else []
        parts += [f"{self.before:,} done earlier"] if self.before else []
        return parts

    def line(self) -> str:
        """Return all parts as one line."""
        return ", ".join(self.parts())


def counted(count: int, unit: str) -> str:
    """Format a number with its unit, which is given in the plural: 1 row, 2,000 rows."""
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"


def rate(per_second: float) -> str:
    """Format a rate with two or three digits, per second, minute or hour."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if (value := per_second * seconds) >= 1 or unit == "h":
            return f"{value:,.0f}/{unit}" if value >= 100 else f"{value:.2g}/{unit}"
    raise AssertionError


def fitting(parts: Iterable[str], width: int) -> str:
    """Join the first parts with commas, as many as fit into `width` characters, but at least one."""
    found = ""
    for part in parts:
        if found and len(found) + 2 + len(part) > width:
            break
        found += f", {part}" if found else part
    return found


def now() -> str:
    """Return the current time in UTC, in the format of the manifest."""
    return datetime.now(UTC).isoformat(timespec="seconds")
