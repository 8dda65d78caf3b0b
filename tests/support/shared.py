"""Share an expensive folder among all processes that run tests at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process to ask for it has made. Tests read it; those that write copy it first.

    Args:
        factory: The factory of temporary folders.
        name: The name of the folder.
        make: Fills the folder, which exists and is empty.
    """
    base = factory.getbasetemp()
    # Under xdist, each process has a folder of its own in that of the test run.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
