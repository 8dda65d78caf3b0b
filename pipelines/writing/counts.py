"""What one clean copy counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Rows (samples, of a tar) read, left out and written, and the exclusions that were met; each counted by itself."""

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
