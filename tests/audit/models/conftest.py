"""A small model, and a folder of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import audit


@pytest.fixture(scope="session")
def toy_model(data: Path) -> audit.Model:
    """`toy-model`, which loads in half the time of `tiny-sd1`. Tests must not change it."""
    return audit.load_model(data / "toy-model")


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of `toy-model`."""
    return Path(shutil.copytree(data / "toy-model", tmp_path / "model"))
