"""Start Ray on this machine for one run, or connect to a running cluster."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private.node import Node

from audit.errors import UsageError
from pipelines.engine.owner import pid_space
from pipelines.engine.ray_token import private_token, require_token

LOOPBACK = "127.0.0.1"
# The path of a Unix socket has at most 107 bytes, of which Ray and crossaudit need about 90.
_LONGEST_FOLDER = 15
_PREFIX, _PID = "crossaudit-", "pid"
# What Ray starts besides its scheduler and its object store, and a run on one machine does not need: the API server,
# which without a dashboard only queries the metadata addresses of cloud providers to find out where it is running; the
# autoscaler, because the machine stays as it is; and the process that passes on what workers print.
_NOT_STARTED = ("start_api_server", "start_monitor", "start_log_monitor")
_sessions: list[str] = []


def start_ray(address: str | None, workers: int, cpus: int, gpus: float) -> None:
    """Start Ray on this machine without output, or connect to a cluster. `stop_ray` ends either.

    A Ray that is started here listens only on 127.0.0.1, makes no outgoing connections, and has its own folder.

    Args:
        address: The address of a cluster, or None to start Ray here.
        workers: Maximum number of workers.
        cpus: CPU cores per worker.
        gpus: GPUs per worker.

    Raises:
        UsageError: This machine does not have the GPUs for one worker (a cluster may grow), or there is no token for
            the cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is not None:
        require_token(address)
        ray.init(address=address, **quiet)
        return
    private_token()
    # Workers inherit PYTHONPATH, so that they can also import a checkout that is not installed.
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    _sessions.append(_folder())
    try:
        with _environment({"PYTHONPATH": path}), _loopback():
            # Without "local", Ray would use the address in RAY_ADDRESS.
            ray.init(
                address="local",
                num_cpus=workers * cpus,
                num_gpus=None if gpus else 0,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=os.path.join(_sessions[-1], "ray"),  # Ray makes this folder accessible to everyone
                **quiet,
            )
        found = ray.cluster_resources().get("GPU", 0)
        if found < gpus:
            hint = "Lower engine.gpus_per_worker (0 runs on the CPU), or set engine.address to a cluster."
            raise UsageError(f"a worker needs {gpus:g} GPU and this machine has {found:g}", where="engine", hint=hint)
    except BaseException:
        stop_ray()
        raise


def stop_ray() -> None:
    """Stop the Ray that was started here and remove its folder, or disconnect from the cluster."""
    ray.shutdown()
    while _sessions:
        shutil.rmtree(_sessions.pop(), ignore_errors=True)


def _folder() -> str:
    """Create a folder for a Ray session, with a path short enough for its sockets. Removes folders of killed runs."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
    for note in Path(parent).glob(f"{_PREFIX}*/{_PID}"):
        with suppress(OSError, ValueError):  # the folder may belong to another user
            pid, space = note.read_text().split(maxsplit=1)
            if space == pid_space() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(note.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    Path(folder, _PID).write_text(f"{os.getpid()} {pid_space()}")
    return folder


@contextmanager
def _loopback() -> Iterator[None]:
    """Restrict a Ray that is started in this context, and its processes, to 127.0.0.1.

    Ray replaces a loopback address with a reachable one, except on platforms where it does not support clusters
    (Windows, macOS). Its processes read this setting from an environment variable; this process read it when it
    imported Ray. The processes of _NOT_STARTED are left out. Ray 2.60 has no public way to do either.
    """
    enabled, starts = ray_constants.ENABLE_RAY_CLUSTER, {name: getattr(Node, name) for name in _NOT_STARTED}
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name in starts:
        setattr(Node, name, lambda self, **options: None)
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for name, start in starts.items():
            setattr(Node, name, start)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within this context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
