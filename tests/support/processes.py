"""Watch child processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

# Far more than any wait takes, even on a machine that does much else.
GIVE_UP = 1200.0
# Seconds between two looks. What is waited for takes seconds, and a look lists the files of a table.
LOOK = 0.05


def until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds or the process has ended."""
    began = time.monotonic()
    while process.poll() is None and not true():
        assert time.monotonic() - began < GIVE_UP, "nothing happens"
        time.sleep(LOOK)
