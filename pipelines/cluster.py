"""The Ray that a run works on: one of this machine, started here, or a cluster that is there."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node

from audit.errors import AuditError, UsageError, first_line

LOOPBACK = "127.0.0.1"
# Where Ray looks for the token of this user unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH says otherwise.
TOKEN = Path("~/.ray/auth_token")
# The path of a Unix socket is at most 107 bytes long, of which Ray and we need about 90.
_LONGEST_FOLDER = 15
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
    _private_token()
    # Workers inherit PYTHONPATH: a checkout that is not installed is importable in them too.
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
            do = "Lower it (0 runs on the CPU), or name a cluster by engine.address."
            raise UsageError(f"a worker needs {gpus:g} GPUs and this machine has {found:g}", where="engine", do=do)
    except BaseException:
        stop_ray()
        raise


def stop_ray() -> None:
    """Ends the Ray that was started here and removes its folder, or leaves the cluster."""
    ray.shutdown()
    while _sessions:
        shutil.rmtree(_sessions.pop(), ignore_errors=True)


def has_token() -> bool:
    """Whether Ray would find a token here."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or TOKEN.expanduser().is_file()


def require_token(address: str) -> None:
    """Raises UsageError if this process would use the cluster at `address` without a token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "disabled" and has_token():
        return
    do = (
        "Start every machine of it with RAY_AUTH_MODE=token and the token of `ray get-auth-token --generate`; "
        "set both here too (docs/cluster.md)."
    )
    raise UsageError(f"the cluster {address} is used with a token only", where="engine.address", do=do)


def _private_token() -> None:
    """Makes the token of this user readable for no other one; Ray writes it as readable as any file."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = TOKEN.expanduser()
    try:
        if path.is_file():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return  # another run was faster, and did the same
    except OSError as error:
        do = "Set RAY_AUTH_TOKEN_PATH to a file that only you can read and that holds a token."
        raise AuditError(f"no token for Ray can be kept there: {first_line(error)}", where=str(path), do=do) from error


def _folder() -> str:
    """A new folder for a session of Ray, with a path short enough for its sockets."""
    usual = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="crossaudit-", dir=usual if len(usual) <= _LONGEST_FOLDER else "/tmp")


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
