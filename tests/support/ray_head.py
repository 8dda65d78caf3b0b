"""Run Ray's command line, with a dashboard that serves nothing but jobs. Its other parts are seven more processes.

Nor is there a server for clients outside the cluster, which jobs do not need.

Usage: python -m tests.support.ray_head start --head ...
"""

from __future__ import annotations

from typing import Any

from ray._private import services
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_DASHBOARD
from ray.scripts.scripts import main

start = services.start_ray_process


def start_process(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
    """Start a process of Ray. The dashboard loads only what jobs need: the job server and the address of the head."""
    if process_type == PROCESS_TYPE_DASHBOARD:
        command = [*command, "--modules-to-load=NodeHead,JobHead"]
    return start(command, process_type, *arguments, **options)


if __name__ == "__main__":
    services.start_ray_process = start_process
    Node.start_ray_client_server = lambda self: None
    main()
