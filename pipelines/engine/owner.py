"""One writer per run: who writes into it says so in a record there, and keeps that fresh.

No file system that a run may lie on has to create a file conditionally. A writer puts a record of its own, under a name
that nobody else uses, and only then lists all of them: of two writers at least one sees the other, for what was put is
listed at once (as local disks, S3, GCS and Azure promise). Who sees another one that is alive takes its own back.
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

# Seconds between two signs of life, and after how many without one a writer on another machine is dead.
BEAT, DEAD = 20.0, 180.0


@dataclass(frozen=True)
class Record:
    """A process that writes into a run; `job`: of a Ray cluster, if it is one. `pids`: the space that `pid` is of."""

    host: str
    pids: str
    pid: int
    began: float
    job: str | None

    @classmethod
    def own(cls) -> Record:
        job = current_job()
        return cls(socket.gethostname(), pid_space(), os.getpid(), _began(os.getpid()) or 0.0, job.id if job else None)

    def alive(self, age: float) -> bool:
        """Whether it still runs, as far as can be seen from here; `age`: seconds since its last sign of life."""
        if (self.host, self.pids) != (socket.gethostname(), pid_space()):
            return age < DEAD
        began = _began(self.pid)
        # Another process may have got the number of one that has ended.
        return began is not None and abs(began - self.began) < 2

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Owner:
    """This process as the writer of a run, for as long as the context lasts. Entering it raises AuditError if there is
    another; records of those that have died are removed."""

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
        """Raises AuditError if another writer has taken this one, which gave no sign of life, for dead."""
        if self._lost:
            what = "another run has taken it over, for this one gave no sign of life"
            raise AuditError(what, where=self._ledger.uri, hint="The same command again goes on when that has ended.")

    def _refuse_second(self) -> None:
        records = self._records()
        now = records.pop(self._name)  # by the clock of the disk, as all the others are
        for name, at in records.items():
            record, age = self._read(name), now - at
            if record is None:
                continue
            if record.alive(age):
                hint = f"Wait for it, end it, or choose another --out. Silent for {DEAD:.0f} s, it is taken for dead."
                what = f"{record} writes into it (last sign of life {max(age, 0):.0f} s ago)"
                raise AuditError(what, where=self._ledger.uri, hint=hint, kind="second_writer")
            self._remove(name)

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a disk that does not answer now may do so in time
                if self._name not in self._records():
                    self._lost = True
                    return
                self._sign()

    def _sign(self) -> None:
        self._ledger.write_bytes(f"{OWNERS}/{self._name}", json.dumps(asdict(Record.own())).encode())

    def _records(self) -> dict[str, float]:
        """When each record was written, by its name."""
        selector = pafs.FileSelector(self._ledger.path(OWNERS), allow_not_found=True)
        found = self._ledger.filesystem.get_file_info(selector)
        return {each.base_name: (each.mtime_ns or 0) / 1e9 for each in found if each.base_name.endswith(".json")}

    def _read(self, name: str) -> Record | None:
        """A record, if it is still there; one that cannot be read is of nobody."""
        try:
            known: dict[str, Any] = json.loads(self._ledger.read_bytes(f"{OWNERS}/{name}") or b"null")
            return Record(**known) if known else None
        except (OSError, ValueError, TypeError):
            return Record("an unknown host", "", 0, 0.0, None)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            self._ledger.filesystem.delete_file(self._ledger.path(OWNERS, name))


def _began(pid: int) -> float | None:
    """When a process of this machine began, if it runs."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def pid_space() -> str:
    """The space that numbers of processes are of: each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
