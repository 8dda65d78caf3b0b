"""One writer per run, and what becomes of the record of one that has died."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from audit.errors import AuditError
from audit.record.ledger import OWNERS, Ledger
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine import owner
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner, Record
from tests.support.paths import ROOT
from tests.support.toy import write_config

HOLD = "import sys; from audit.record.ledger import Ledger; from pipelines.engine.owner import Owner\n"
HOLD += "with Owner(Ledger(sys.argv[1])):\n    print('here', flush=True)\n    sys.stdin.read()"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel("ERROR")  # else a line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in (("ACCESS_KEY_ID", "no"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        filesystem, name = pafs.FileSystem.from_uri("s3://owned?allow_bucket_creation=true")
        filesystem.create_dir(name)
        yield "s3://owned"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "disk":
        return Ledger(str(tmp_path / "run"))
    return Ledger(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def leave(ledger: Ledger, record: Record) -> None:
    ledger.write_bytes(f"{OWNERS}/other.json", json.dumps(asdict(record)).encode())


def records(ledger: Ledger) -> list[str]:
    selector = pafs.FileSelector(ledger.path(OWNERS), allow_not_found=True)
    return [info.base_name for info in ledger.filesystem.get_file_info(selector)]


def test_a_second_writer_is_refused_and_told_who_the_first_is(ledger: Ledger) -> None:
    with Owner(ledger):
        [first] = records(ledger)
        with pytest.raises(AuditError, match=f"process {os.getpid()} on .* is writing to this run"), Owner(ledger):
            pass
        assert records(ledger) == [first]
    assert records(ledger) == []
    with Owner(ledger):
        pass


def test_a_writer_that_was_killed_is_followed_at_once(ledger: Ledger) -> None:
    command = [sys.executable, "-c", HOLD, ledger.uri]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(AuditError, match=f"process {process.pid} on"), Owner(ledger):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Owner(ledger):
            assert len(records(ledger)) == 1
    assert records(ledger) == []


def test_the_number_of_a_dead_process_may_be_that_of_another(ledger: Ledger) -> None:
    leave(ledger, replace(Record.own(), began=psutil.Process().create_time() - 100))
    with Owner(ledger):
        assert "other.json" not in records(ledger)


def test_a_writer_on_another_machine_is_dead_without_a_sign_of_life(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(ledger, replace(Record.own(), host="elsewhere", job="job-7"))
    with pytest.raises(AuditError, match="on elsewhere, job job-7 is writing to this run"), Owner(ledger):
        pass
    monkeypatch.setattr(owner, "DEAD", -5.0)
    with Owner(ledger):
        assert "other.json" not in records(ledger)


def test_signs_of_life_are_given_and_a_writer_that_was_replaced_is_told(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT", 0.01)
    with Owner(ledger) as writer:
        writer.check()
        [record] = records(ledger)
        while writer._beat.is_alive():  # what is removed while a sign of life is written is there again
            writer._remove(record)
            writer._beat.join(0.1)
        with pytest.raises(AuditError, match="has taken over this run"):
            writer.check()


def test_a_run_has_one_writer_whose_record_is_no_part_of_it(tmp_path: Path) -> None:
    config, given = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)

    def opened() -> Run:
        return Run(config, ledger, Manifest.open(ledger, config, given), Reporter())

    late = opened()
    with opened() as run:
        with pytest.raises(AuditError, match="is writing to this run"), late:
            pass
        run.manifest.data.accounting.input_rows = 7
    assert not (tmp_path / "run" / OWNERS).exists()
    with late:  # it was opened before the first had written anything
        assert late.manifest.data.accounting.input_rows == 7
