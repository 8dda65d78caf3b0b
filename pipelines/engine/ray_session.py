"""The Ray that a run works on: one of this machine, started here, or a cluster that is there."""

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
# The path of a Unix socket is at most 107 bytes long, of which Ray and we need about 90.
_LONGEST_FOLDER = 15
_PREFIX, _PID = "crossaudit-", "pid"
_sessions: list[str] = []


def start_ray(address: str | None, workers: int, cpus: int, gpus: float) -> None:
    """Starts a quiet Ray on this machine, or connects to the cluster at `address`. `stop_ray` ends either.

    A Ray that is started here listens on 127.0.0.1 only, contacts nobody, and has a folder of its own. Raises
    UsageError if this machine lacks the GPUs of one worker (a cluster may grow) or if the cluster is to be used without
    a token.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray tells of dead workers on standard output; the table `errors` tells the same.
    ray._private.worker._worker_logs_enabled = False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is not None:
        require_token(address)
        ray.init(address=address, **quiet)
        return
    private_token()
    # Workers inherit PYTHONPATH: a checkout that is not installed is importable in them too.
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    _sessions.append(_folder())
    try:
        with _environment({"PYTHONPATH": path}), _loopback():
            # `address` may also come from RAY_ADDRESS: "local" insists on a Ray of our own.
            ray.init(
                address="local",
                num_cpus=workers * cpus,
                num_gpus=None if gpus else 0,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=os.path.join(_sessions[-1], "ray"),  # Ray opens that to everybody
                **quiet,
            )
        found = ray.cluster_resources().get("GPU", 0)
        if found < gpus:
            hint = "Lower it (0 runs on the CPU), or name a cluster by engine.address."
            raise UsageError(f"a worker needs {gpus:g} GPUs and this machine has {found:g}", where="engine", hint=hint)
    except BaseException:
        stop_ray()
        raise


def stop_ray() -> None:
    """Ends the Ray that was started here and removes its folder, or leaves the cluster."""
    ray.shutdown()
    while _sessions:
        shutil.rmtree(_sessions.pop(), ignore_errors=True)


def _folder() -> str:
    """A new folder for a session of Ray, with a path short enough for its sockets; those that killed runs left go."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
    for note in Path(parent).glob(f"{_PREFIX}*/{_PID}"):
        with suppress(OSError, ValueError):  # they may be of somebody else
            pid, space = note.read_text().split(maxsplit=1)
            if space == pid_space() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(note.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    Path(folder, _PID).write_text(f"{os.getpid()} {pid_space()}")
    return folder


@contextmanager
def _loopback() -> Iterator[None]:
    """Keeps a Ray that is started meanwhile, and its processes, to 127.0.0.1.

    Ray replaces a loopback address by one that others can reach, except where it holds that clusters are not supported
    (Windows, macOS). Its processes read that from the variable; this process did when it imported Ray. The API server
    is left out: without a dashboard it only asks the metadata addresses of cloud providers where it is running.
    """
    enabled, start = ray_constants.ENABLE_RAY_CLUSTER, Node.start_api_server
    ray_constants.ENABLE_RAY_CLUSTER = False
    Node.start_api_server = lambda self, **options: None  # type: ignore[method-assign]
    try:
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, Node.start_api_server = enabled, start  # type: ignore[method-assign]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for a while."""
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
