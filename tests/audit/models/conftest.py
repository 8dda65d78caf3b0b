"""A folder of a small model that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of the folder of `small`."""
    return Path(shutil.copytree(data / "toy-model", tmp_path / "model"))
