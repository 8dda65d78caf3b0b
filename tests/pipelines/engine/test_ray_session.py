"""The Ray of this machine: what it listens on, whom it contacts, and what it leaves behind.

The sockets are those of a real session with one worker, as the kernel lists them for each of its processes. A listening
socket stays, so none is missed; a short contact may fall between two looks. Those that Ray is known to make come from
its API server and from its search for an address that others can reach, so that neither took place is tested by itself.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipelines.engine.owner import pid_space
from pipelines.engine.ray_session import start_ray, stop_ray


@pytest.fixture(scope="module")
def left() -> Path:
    """The folder of a run that was killed."""
    folder = Path(tempfile.mkdtemp(prefix="crossaudit-", dir="/tmp"))
    with subprocess.Popen(["true"]) as process:
        (folder / "pid").write_text(f"{process.pid} {pid_space()}")
    return folder


@pytest.fixture(scope="module")
def session(left: Path) -> Iterator[Path]:
    """The folder of a Ray with one worker at work."""
    start_ray(None, workers=1, cpus=1, gpus=0)
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    yield Path(ray._private.worker._global_node.get_session_dir_path())
    stop_ray()


@pytest.mark.slow
def test_its_folder_is_private_and_that_of_a_killed_run_is_removed(session: Path, left: Path) -> None:
    assert not left.exists()
    assert stat.S_IMODE(session.parents[1].stat().st_mode) == 0o700


def connections() -> Iterator[tuple[str, psutil._common.pconn]]:
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        for found in process.net_connections("inet"):
            yield process.name(), found


def is_loopback(address: str) -> bool:
    return address.removeprefix("::ffff:") in ("127.0.0.1", "::1")


@pytest.mark.slow
def test_every_process_listens_on_the_loopback_interface_only(session: Path) -> None:
    listening = [(name, at.laddr.ip) for name, at in connections() if at.status == psutil.CONN_LISTEN]
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert [(name, ip) for name, ip in listening if not is_loopback(ip)] == []


@pytest.mark.slow
def test_no_process_is_connected_to_another_machine(session: Path) -> None:
    assert [(name, at.raddr.ip) for name, at in connections() if at.raddr and not is_loopback(at.raddr.ip)] == []


@pytest.mark.slow
def test_what_contacts_other_machines_or_is_not_needed_is_not_started(session: Path) -> None:
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    for unneeded in ("dashboard/dashboard.py", "monitor.py"):
        assert not [command for command in commands if unneeded in command]
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_its_folder_goes_with_it(session: Path) -> None:
    assert session.exists()
    stop_ray()
    assert not session.parents[1].exists()
