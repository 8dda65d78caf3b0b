"""Log to RUN/logs: each process of a run writes a file of its own, on any file system.

`crossaudit errors` shows the failures by cause. The logs have everything else: warnings of libraries, failed attempts
that succeeded later, and workers that died.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from audit.errors import AuditError

if TYPE_CHECKING:
    from audit.record.ledger import Ledger, Shard

FOLDER = "logs"
# Characters per file. An object store cannot append, so every write repeats the whole file.
LONGEST = 1 << 20
# Seconds after which a new record is written. The end of an attempt writes at once.
DELAY = 10.0

logger = logging.getLogger(__name__)
# What this process is working on; a worker works on one attempt at a time. Helper threads belong to the same attempt.
_subject = ""


class RunLog(logging.Handler):
    """A handler of the root logger that writes a file in RUN/logs.

    Writes nothing while the run holds nothing, because a folder with only a log is not a run.

    Args:
        ledger: The run.
        role: "driver" or "worker".
        level: The lowest level that is logged: debug, info, warning or error.
    """

    def __init__(self, ledger: Ledger, role: str, level: str) -> None:
        super().__init__()
        host = re.sub(r"[^\w.-]+", "-", socket.gethostname())
        self._name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{role}-{host}-{os.getpid()}"
        self._ledger, self._lines, self._length = ledger, list[str](), 0
        # The number of the current file, and full files that are not yet written, by number.
        self._file, self._full = 1, dict[int, str]()
        self._new = self._run_exists = False
        self._timer: threading.Timer | None = None
        self._writing = threading.Lock()
        self._writer: int | None = None
        formatter = logging.Formatter("{asctime}Z {levelname} {subject}{name}: {message}", "%Y-%m-%dT%H:%M:%S", "{")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        root = logging.getLogger()
        self._level_before = root.level
        root.addHandler(self)
        root.setLevel(level.upper())
        logging.captureWarnings(True)
        capture_libraries()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, and write it soon. Drops those about the writing of the log, which would never end."""
        if record.thread == self._writer:
            return
        record.subject = f"[{_subject}] " if _subject else ""
        line = f"{self.format(record)}\n"
        if self._length and self._length + len(line) > LONGEST:
            self._full[self._file] = "".join(self._lines)
            self._lines, self._length, self._file = [], 0, self._file + 1
        self._lines.append(line)
        self._length += len(line)
        self._new = True
        if self._timer is None:
            self._timer = threading.Timer(DELAY, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Write the file if there are new records."""
        with self._writing:
            self._writer = threading.get_ident()
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            try:
                if self._new and self._in_run():
                    self._write()
            finally:
                self._writer = None

    def _in_run(self) -> bool:
        """Return whether the run holds anything."""
        with suppress(OSError, AuditError):
            self._run_exists = self._run_exists or self._ledger.holds_anything()
        return self._run_exists

    def _write(self) -> None:
        self.acquire()
        try:
            files = self._full | {self._file: "".join(self._lines)}
            self._full, self._new = {}, False
        finally:
            self.release()
        with suppress(OSError, AuditError):  # the work matters more than its log
            for number, content in files.items():
                name = f"{FOLDER}/{self._name}-{number}.log"
                self._ledger.write_bytes(name, content.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Write the last records, and stop logging."""
        root = logging.getLogger()
        if self in root.handlers:
            self.flush()
            root.removeHandler(self)
            root.setLevel(self._level_before)
            logging.captureWarnings(False)
        super().close()


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Name what this process works on in all records within the context."""
    global _subject
    before, _subject = _subject, subject
    try:
        yield
    finally:
        _subject = before


@contextmanager
def attempt(step: str, shard: Shard, number: int) -> Iterator[None]:
    """Name an attempt in all records within the context, log what it raises, and write the log at its end.

    Args:
        step: The title of the step.
        shard: The shard, or a piece of it.
        number: The number of the attempt, from 1.
    """
    with about(f"{step}, shard {shard.name}, rows {shard.start} to {shard.stop}, attempt {number}"):
        try:
            yield
        except Exception:
            logger.exception("the attempt failed")
            raise
        finally:
            write()


def write() -> None:
    """Write what has been logged and is not yet written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def capture_libraries() -> None:
    """Send the messages of diffusers and transformers to the log of this process, if it has one and they are imported.

    By default, both print to standard error.
    """
    if not any(isinstance(handler, RunLog) for handler in logging.getLogger().handlers):
        return
    for library in ("diffusers", "transformers"):
        messages = sys.modules.get(f"{library}.utils.logging")
        if messages is not None:
            messages.disable_default_handler()
            messages.enable_propagation()
            messages.set_verbosity(logging.getLogger().level)
