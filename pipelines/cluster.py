"""The Ray that a run works on: one of this machine, started here, or a cluster that is there."""

from __future__ import annotations

import os
from typing import Any

import ray

from audit.errors import UsageError


def start_ray(address: str | None, workers: int, cpus: int, gpus: float) -> None:
    """A quiet Ray of this machine, or a connection to the cluster at `address`.

    Raises UsageError if this machine has not the GPUs of one worker; a cluster may grow.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray tells of dead workers on standard output; the table `errors` tells the same.
    ray._private.worker._worker_logs_enabled = False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    before = os.environ.get("PYTHONPATH")
    # Workers inherit this environment: a checkout that is not installed is importable in them too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))
    try:
        # `address` may also come from RAY_ADDRESS: "local" insists on a Ray of our own.
        ray.init(
            address="local",
            num_cpus=workers * cpus,
            num_gpus=None if gpus else 0,
            include_dashboard=False,
            **quiet,
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    found = ray.cluster_resources().get("GPU", 0)
    if found < gpus:
        ray.shutdown()
        do = "Lower it (0 runs on the CPU), or name a cluster by engine.address."
        raise UsageError(f"a worker needs {gpus:g} GPUs and this machine has {found:g}", where="engine", do=do)
