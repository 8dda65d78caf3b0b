"""A finished run on disk, for reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reports.html import render
from reports.record.build import build
from reports.record.model import Record
from tests.support.report_run import BIDI, HOSTILE
from tests.support.report_run import build as write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: shared by all tests."""
    root = tmp_path_factory.mktemp("audit") / "run"
    write_run(root)
    return root


@pytest.fixture(scope="session")
def record(run: Path) -> Record:
    """The record of the shared run."""
    return build(run)


@pytest.fixture(scope="session")
def page(record: Record) -> str:
    """The report of the shared run."""
    return render(record)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def hostile() -> str:
    """A confirmed caption of the run that tries to be a script."""
    return HOSTILE


@pytest.fixture
def bidi() -> str:
    """A confirmed caption of the run that turns the direction of its text."""
    return BIDI
