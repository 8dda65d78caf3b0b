"""The record of a finished run with every verdict and with hostile captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.exports.formats import finished_record
from reports.record.model import Record


@pytest.fixture(scope="session")
def record(run: Path) -> Record:
    return finished_record(run)
