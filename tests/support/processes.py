"""Watch child processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

# Far more than any wait takes, even on a machine that does much else.
GIVE_UP = 1200.0
# Seconds between two looks. What is waited for takes seconds, and a look lists the files of a table.
LOOK = 0.05


def until(true: Callable[[], bool], lives: Callable[[], bool]) -> None:
    """Wait until a condition holds, or the process that is to fulfil it does not live any more."""
    began = time.monotonic()
    while lives() and not true():
        assert time.monotonic() - began < GIVE_UP, "nothing happens"
        time.sleep(LOOK)


def descendants(*command: str) -> list[psutil.Process]:
    """Return the processes that this one has started, directly or not, and whose command begins like this."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()[: len(command)]
        except psutil.Error:
            continue
        if len(words) == len(command) and all(map(str.startswith, words, command)):
            found.append(process)
    return found
