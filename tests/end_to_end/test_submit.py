"""An audit as a job of a real Ray cluster: its workers and then the job are killed, and it is submitted again."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from audit.record.ledger import Ledger
from pipelines.engine import ray_jobs
from pipelines.engine.ray_jobs import Cluster
from pipelines.engine.ray_token import private_token
from reports.check import check
from tests.support.called import Called, crossaudit
from tests.support.comparison import same
from tests.support.paths import ROOT
from tests.support.processes import descendants, until
from tests.support.toy import FEW

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
DRIVER = (str(BIN), "-m", "pipelines.cli", "run", "audit.yaml")
WORKER = "ray::RemoteWorker"
CHOSEN = [word for setting in ("engine.workers=1", *FEW) for word in ("--set", setting)]


def free_ports(count: int) -> list[int]:
    """Return different ports."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def submit(config: Path, address: str, out: str, *options: str) -> Called:
    return crossaudit("submit", str(config), "--address", address, "--out", out, *CHOSEN, *options)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission waits for its run to begin, however busy the machine is."""
    monkeypatch.setattr(ray_jobs, "_PATIENCE", math.inf)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that `ray start --head` has started."""
    gcs, dashboard, agent = free_ports(3)
    # In a folder of its own: a job goes to the cluster that was started last in its folder. Sockets want a short name.
    folder = tempfile.mkdtemp(dir="/tmp")
    private_token()  # what `ray get-auth-token --generate` makes, but readable for its owner only
    ports = f"--port={gcs} --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
    # By its full path: the environment that holds crossaudit need not be activated where a cluster is started.
    command = [sys.executable, "-m", "tests.support.ray_head", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--temp-dir={folder}", *ports.split()]
    # Do not start processes that no job needs.
    command += ["--no-monitor", "--include-log-monitor=false"]
    fewer = {"RAY_prestart_worker_first_driver": "false", "RAY_enable_worker_prestart": "false"}
    elsewhere = os.environ | fewer | {"PATH": os.defpath, "RAY_AUTH_MODE": "token"}
    assert shutil.which("crossaudit", path=os.defpath) is None
    with subprocess.Popen(
        command, cwd=ROOT, env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as ray:
        assert ray.stdout is not None
        said = []
        for line in ray.stdout:
            said.append(line)
            if "--block" in line:  # everything is up, and it waits
                break
        else:
            raise AssertionError("".join(said))
        yield f"http://127.0.0.1:{dashboard}"
        processes = psutil.Process(ray.pid).children(recursive=True)
        ray.terminate()
        ray.communicate()
        for process in processes:
            if process.is_running():
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def dataset(toy: Path) -> Path:
    return toy / "audit.yaml"


def driver() -> psutil.Process:
    """Return the driver of the job, as soon as there is one."""
    until(lambda: bool(descendants(*DRIVER)), lambda: True)
    [process] = descendants(*DRIVER)
    return process


def stop(address: str) -> bool:
    """Stop a job while its driver starts. Return whether it was running."""
    driver()
    cluster = Cluster(address)
    [job] = [job for job in cluster._client.list_jobs() if job.status == "RUNNING"]
    return cluster.stop(job.submission_id)


def test_a_submission_that_is_killed_or_stopped_is_finished_by_the_next(
    cluster: str, dataset: Path, few: Path, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    first = submit(dataset, cluster, run)
    assert first.returncode == 0, first.stderr
    assert f"crossaudit status|logs|stop {run}" in first.stdout
    second = submit(dataset, cluster, run)
    assert second.returncode == 1
    assert re.search(r"job crossaudit-\w+ is already working on this run \(running", second.stderr)
    status = crossaudit("status", run).stdout
    assert status.startswith("running: ")
    assert "RUNNING" in status
    process = driver()
    until(lambda: bool(descendants(WORKER)), process.is_running)
    [worker] = descendants(WORKER)
    worker.kill()  # while it loads the models
    worker.wait()
    until(lambda: bool(descendants(WORKER)), process.is_running)  # another takes its place
    process.kill()
    followed = crossaudit("logs", run, "--follow")
    assert followed.returncode == 1
    assert "failed with exit code" in followed.stderr
    killed = crossaudit("status", run).stdout
    assert killed.startswith("killed. Last progress: starting")
    assert "FAILED" in killed

    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(stop, cluster)
        waited = submit(dataset, cluster, run, "--wait")
    assert stopping.result()
    assert waited.returncode == 1
    assert "was stopped" in waited.stderr
    assert "was not running" in crossaudit("stop", run).stdout

    again = submit(dataset, cluster, run, "--wait")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"{run}/report.html"
    assert "embed: 40 images" in again.stderr
    same(Ledger(run), Ledger(str(few)))
    assert [result for result in check(run) if not result.ok] == []
    manifest = json.loads(Path(run, "manifest.json").read_text())
    assert [job["address"] for job in manifest["jobs"]] == [cluster] * 2
    assert len({job["id"] for job in manifest["jobs"]}) == 2
    status = crossaudit("status", run).stdout
    assert status.startswith("finished at")
    assert "SUCCEEDED" in status


def test_one_that_cannot_begin_says_why_and_so_does_its_run(cluster: str, dataset: Path, tmp_path: Path) -> None:
    missing, nowhere, run = (str(tmp_path / name) for name in ("nowhere.parquet", "nowhere", "run"))
    failed = submit(dataset, cluster, run, "--set", f"captions={missing}", "--set", f"model={nowhere}")
    assert failed.returncode == 1
    assert "failed with exit code 1" in failed.stderr
    assert f"{missing}: no such file" in failed.stderr
    assert f"{nowhere}: no such model" in failed.stderr
    status = crossaudit("status", run).stdout
    assert status.startswith("stopped at")
    assert "2 problems" in status
    assert "FAILED" in status


@pytest.mark.soak
def test_one_that_fails_is_waited_for_and_its_run_says_why(cluster: str, dataset: Path, tmp_path: Path) -> None:
    missing, run = str(tmp_path / "nowhere"), str(tmp_path / "run")
    failed = submit(dataset, cluster, run, "--set", f"model={missing}", "--wait")
    assert failed.returncode == 1
    assert "failed with exit code 1" in failed.stderr
    assert missing in failed.stderr
    assert missing in crossaudit("status", run).stdout


def test_where_no_cluster_answers_the_error_says_what_the_address_should_be(dataset: Path, tmp_path: Path) -> None:
    [port] = free_ports(1)
    nobody = f"http://127.0.0.1:{port}"
    failed = submit(dataset, nobody, str(tmp_path / "run"))
    assert failed.returncode == 1
    assert nobody in failed.stderr
    assert "http://HEAD:8265" in failed.stderr
    assert not (tmp_path / "run").exists()
