"""Records of which a test reads the text alone."""

from __future__ import annotations

from reports.record.model import Record


def without_figures(record: Record) -> Record:
    """Leave out the histograms and the cases, whose figures take most of the time that a page takes."""
    return record.model_copy(update={"histograms": {}, "cases": []})
