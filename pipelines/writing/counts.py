"""Count the rows of a clean copy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Count rows (or samples of a tar) independently of each other.

    Attributes:
        rows_in: Rows read.
        dropped: Rows left out.
        rows_out: Rows written.
        met: Exclusions that were found in the file.
    """

    rows_in: int = 0
    dropped: int = 0
    rows_out: int = 0
    met: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows_in + other.rows_in,
            self.dropped + other.dropped,
            self.rows_out + other.rows_out,
            self.met + other.met,
        )
