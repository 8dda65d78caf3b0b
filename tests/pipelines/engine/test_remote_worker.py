"""What a remote worker raises has its traceback, and its log is in the run."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.errors import UsageError
from audit.record.ledger import Ledger, Shard, Tables
from pipelines.configuration.settings import load_config
from pipelines.console.logs import RunLog
from pipelines.engine.remote_worker import RemoteWorker
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import WorkerError
from pipelines.engine.worker import Worker
from tests.support.toy import write_config

SHARD = Shard("00007", None, 2, 3)


def fail(worker: Worker, shard: Shard) -> Tables:
    logging.getLogger("work").info("begun")
    raise ValueError(f"row {shard.start} is bad")


def fail_on_cuda(worker: Worker, shard: Shard) -> Tables:
    raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The run of the worker. A worker logs until its process ends; here, until the test ends."""
    before = list(logging.getLogger().handlers)
    yield Ledger(load_config(write_config(tmp_path))[0].out)
    for handler in [handler for handler in logging.getLogger().handlers if handler not in before]:
        assert isinstance(handler, RunLog)
        handler.close()


@pytest.mark.parametrize("method", ["run", "compute"])
def test_the_traceback_begins_with_the_work_and_not_with_the_engine(
    tmp_path: Path, ledger: Ledger, method: str
) -> None:
    ledger.write_bytes("manifest.json", b"{}")
    worker = RemoteWorker(load_config(tmp_path / "audit.yaml")[0], "info")
    with pytest.raises(WorkerError) as caught:
        getattr(worker, method)(Step("find", "found", "rows", ledger, fail), SHARD, 3)
    received = pickle.loads(pickle.dumps(caught.value))
    assert str(received) == "ValueError: row 2 is bad"
    assert received.traceback.startswith(f'Traceback (most recent call last):\n  File "{__file__}"')
    [log] = (tmp_path / "run/logs").iterdir()
    assert "-worker-" in log.name
    content = log.read_text()
    assert "INFO [find, shard 00007, rows 2 to 3, attempt 3] work: begun" in content
    assert "ERROR [find, shard 00007, rows 2 to 3, attempt 3]" in content
    assert content.count("ValueError: row 2 is bad") == 1


def test_a_machine_that_does_not_share_the_run_writes_no_log_of_its_own(tmp_path: Path, ledger: Ledger) -> None:
    worker = RemoteWorker(load_config(tmp_path / "audit.yaml")[0], "debug")
    with pytest.raises(WorkerError) as caught:
        worker.run(Step("find", "found", "rows", ledger, fail), SHARD, 1)
    assert isinstance(caught.value.error, UsageError)
    assert not Path(ledger.uri).exists()


def test_without_a_level_nothing_is_logged(tmp_path: Path, ledger: Ledger) -> None:
    ledger.write_bytes("manifest.json", b"{}")
    worker = RemoteWorker(load_config(tmp_path / "audit.yaml")[0])
    with pytest.raises(WorkerError):
        worker.compute(Step("find", "found", "rows", ledger, fail), SHARD, 1)
    assert not Path(ledger.uri, "logs").exists()


def test_a_worker_that_ends_because_of_a_cuda_error_writes_its_traceback_first(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.write_bytes("manifest.json", b"{}")
    worker = RemoteWorker(load_config(tmp_path / "audit.yaml")[0], "error")
    contents: list[str] = []
    # The last moment of the process.
    monkeypatch.setattr(os, "_exit", lambda code: contents.extend(log.read_text() for log in logs.iterdir()))
    logs = tmp_path / "run/logs"
    with pytest.raises(WorkerError, match="CUDA error"):
        worker.run(Step("find", "found", "rows", ledger, fail_on_cuda), SHARD, 1)
    [content] = contents
    assert "[find, shard 00007, rows 2 to 3, attempt 1]" in content
    assert "in fail_on_cuda" in content
