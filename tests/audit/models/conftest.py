"""A folder that a test may damage, and what it does to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of tiny-sd1."""
    return Path(shutil.copytree(data / "tiny-sd1", tmp_path / "model"))
