"""Allow one writer per run. A writer keeps a record in the run and refreshes it regularly.

This works on file systems that cannot create files conditionally. A writer first writes its own record under a unique
name, and then lists all records. Of two writers, at least one sees the other, because local disks, S3, GCS and Azure
all guarantee that a written file is listed at once. A writer that sees another live writer removes its own record.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pyarrow.fs as pafs

from audit.errors import AuditError
from audit.record.ledger import OWNERS, Ledger
from pipelines.engine.ray_jobs import current_job

# Seconds between two refreshes of a record, and seconds after which a silent writer on another machine counts as dead.
BEAT, DEAD = 20.0, 180.0


@dataclass(frozen=True)
class Record:
    """A process that writes to a run.

    Attributes:
        host: The name of its machine.
        pids: The PID namespace that `pid` belongs to.
        pid: Its process id.
        began: When the process started, in seconds since the epoch.
        job: Its Ray job, if it has one.
    """

    host: str
    pids: str
    pid: int
    began: float
    job: str | None

    @classmethod
    def own(cls) -> Record:
        """Return the record of this process."""
        job = current_job()
        return cls(socket.gethostname(), pid_space(), os.getpid(), _began(os.getpid()) or 0.0, job.id if job else None)

    def alive(self, age: float) -> bool:
        """Return whether the process seems to be running. `age` is the time since its last sign of life, in seconds."""
        if (self.host, self.pids) != (socket.gethostname(), pid_space()):
            return age < DEAD
        began = _began(self.pid)
        # The PID of a process that has ended may have been reused.
        return began is not None and abs(began - self.began) < 2

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Owner:
    """A context in which this process is the only writer of a run.

    Entering it raises AuditError if there is another live writer, and removes the records of dead ones.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._name = ledger, f"{uuid.uuid4().hex}.json"
        self._ended, self._beat, self._lost = threading.Event(), threading.Thread(target=self._live, daemon=True), False

    def __enter__(self) -> Owner:
        self._sign()
        try:
            self._refuse_second()
        except BaseException:
            self._remove(self._name)
            raise
        self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._beat.join()
        self._remove(self._name)
        with suppress(OSError):
            if self._ledger.filesystem.type_name == "local" and not self._records():
                self._ledger.filesystem.delete_dir(self._ledger.path(OWNERS))

    def check(self) -> None:
        """Raise AuditError if another writer has taken over because this one seemed dead."""
        if self._lost:
            what = "another process has taken over this run, because this process showed no sign of life"
            raise AuditError(
                what, where=self._ledger.uri, hint="When that process has ended, rerun the command to resume."
            )

    def _refuse_second(self) -> None:
        records = self._records()
        now = records.pop(self._name)  # by the clock of the disk, like all the other times
        for name, at in records.items():
            record, age = self._read(name), now - at
            if record is None:
                continue
            if record.alive(age):
                hint = (
                    "Wait for it, stop it, or choose another --out. A process that is silent for "
                    f"{DEAD:.0f} s counts as dead."
                )
                what = f"{record} is writing to this run (last sign of life {max(age, 0):.0f} s ago)"
                raise AuditError(what, where=self._ledger.uri, hint=hint, kind="second_writer")
            self._remove(name)

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a disk that does not respond now may recover
                if self._name not in self._records():
                    self._lost = True
                    return
                self._sign()

    def _sign(self) -> None:
        self._ledger.write_bytes(f"{OWNERS}/{self._name}", json.dumps(asdict(Record.own())).encode())

    def _records(self) -> dict[str, float]:
        """Return when each record was written, by name."""
        selector = pafs.FileSelector(self._ledger.path(OWNERS), allow_not_found=True)
        found = self._ledger.filesystem.get_file_info(selector)
        return {each.base_name: (each.mtime_ns or 0) / 1e9 for each in found if each.base_name.endswith(".json")}

    def _read(self, name: str) -> Record | None:
        """Return a record, or None if it is gone. A record that cannot be read belongs to an unknown host."""
        try:
            known: dict[str, Any] = json.loads(self._ledger.read_bytes(f"{OWNERS}/{name}") or b"null")
            return Record(**known) if known else None
        except (OSError, ValueError, TypeError):
            return Record("an unknown host", "", 0, 0.0, None)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            self._ledger.filesystem.delete_file(self._ledger.path(OWNERS, name))


def _began(pid: int) -> float | None:
    """Return when a process on this machine started, or None if it is not running."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def pid_space() -> str:
    """Return the PID namespace of this process. Each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
