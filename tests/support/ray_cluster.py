"""Start a Ray cluster on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from pipelines.engine.ray_token import private_token
from tests.support.paths import ROOT

# Neither the autoscaler, nor the process that passes on what workers print. Nor the API server, which Ray would start
# even without a dashboard.
FEW = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
# A machine that is silent for a second is dead, and no worker is started before it is needed.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
    "prestart_worker_first_driver": False,
    "enable_worker_prestart": False,
}


@contextmanager
def cluster(**resources: Any) -> Iterator[Cluster]:
    """Start the head of a cluster. Its workers can import the checkout.

    Args:
        resources: What the head has room for, such as `num_cpus=2`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(Node, "start_api_server", lambda self, **options: None)
        private_token()  # a run uses a cluster with a token only
        started = Cluster(initialize_head=True, head_node_args=FEW | resources | {"_system_config": QUICK})
        try:
            yield started
        finally:
            started.shutdown()
