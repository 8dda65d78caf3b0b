"""Work for a pool that takes no time, and actors that do it, fail at it or end during it."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from audit.errors import AuditError, UsageError
from audit.record.filesystem import DISK_FULL
from audit.record.ledger import Shard
from pipelines.engine.tracebacks import portable_errors


@dataclass(frozen=True)
class Doubling:
    """Doubles row numbers.

    Attributes:
        deadly: Rows that end the process.
        hanging: Rows that never end.
        bad: Rows that raise ValueError.
        full: A row for which the disk has no room.
        needs: What workers load first.
        folder: Where attempts leave a file: those that hang, and those of `Forgiving`.
    """

    deadly: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    full: int | None = None
    needs: tuple[str, ...] = ()
    folder: str = ""

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[Any]:
        """Return the row, the kind of its error and the message."""
        assert len(shard) == 1
        return [(shard.start, kind, message)]

    def commit(self, shard: Shard, pieces: list[Any]) -> list[Any]:
        """Return the rows of all pieces."""
        return [row for piece in pieces for row in piece]


@dataclass(frozen=True)
class Told(Doubling):
    """Returns the tracebacks of lost rows."""

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[Any]:
        """Return the traceback."""
        return [traceback]


class Doubler:
    """Does the work."""

    def prepare(self, *needs: str) -> dict[str, Any]:
        """Return a fingerprint of each name."""
        return {name: f"weights of {name}" for name in needs}

    def run(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        """Return the doubled rows of a shard."""
        return self.compute(work, shard, number)

    def compute(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        """Return the doubled rows of a piece of a shard."""
        for row in range(shard.start, shard.stop):
            if row in work.deadly:
                os._exit(1)
            if row in work.hanging:
                tempfile.mkstemp(dir=work.folder)
                threading.Event().wait()
            if row in work.bad:
                raise ValueError(f"{row} is bad")
            if row == work.full:
                raise AuditError("there is no room", kind=DISK_FULL)
        return [2 * row for row in range(shard.start, shard.stop)]

    def refuse(self) -> None:
        """Raise UsageError."""
        raise UsageError("not like this")


class UnpicklableError(Exception):
    """It can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} is bad, {second}")


class Carrying(Doubler):
    """Sends its exceptions as `RemoteWorker` does."""

    @portable_errors
    def compute(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        """Raise an error with the number of the attempt for shards that begin with a bad row."""
        if shard.start in work.bad:
            raise UnpicklableError(str(shard.start), f"attempt {number}")
        return super().compute(work, shard, number)


class Different(Doubler):
    """Each process loads other weights."""

    def prepare(self, *needs: str) -> dict[str, dict[str, str]]:
        """Return fingerprints of two parts, one of which differs between processes."""
        return {name: {"unet": "the same", "text_encoder (as loaded)": str(os.getpid())} for name in needs}


class Stillborn(Doubler):
    """Cannot be created."""

    def __init__(self) -> None:
        raise OSError("no room")


class Unready(Doubler):
    """Cannot load anything."""

    def prepare(self, *needs: str) -> dict[str, str]:
        """Raise OSError."""
        raise OSError("no room")


class Late(Doubler):
    """Ends when it is started, until it has been started `starts` times. Each start leaves a file in `folder`."""

    def __init__(self, folder: str, starts: int) -> None:
        tempfile.mkstemp(dir=folder)
        self._late = len(os.listdir(folder)) < starts

    def prepare(self, *needs: str) -> dict[str, str]:
        """End the process if it is too early."""
        if self._late:
            os._exit(1)
        return {}


class Forgiving(Doubler):
    """Ends at the first shard, and leaves a file in the folder of the work, so that the next attempt succeeds."""

    def run(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        """Return the doubled rows of a shard, or end the process."""
        mark = Path(work.folder, "mark")
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return self.compute(work, shard, number)


class Holder(Doubler):
    """Tells what it has loaded, and how many GPUs it holds."""

    def __init__(self) -> None:
        self._loaded: set[str] = set()

    def prepare(self, *needs: str) -> dict[str, str]:
        """Remember the names."""
        self._loaded.update(needs)
        return super().prepare(*needs)

    def run(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        """Return what is loaded, and the number of GPUs."""
        return [self._loaded, len(ray.get_runtime_context().get_accelerator_ids()["GPU"])]
