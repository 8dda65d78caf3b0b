"""What Ray reports of a failure tells whether the worker is to blame or its machine."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from pipelines.engine.failures import lost_with_machine


@pytest.mark.parametrize(
    ("error", "machine"),
    [
        (RayActorError(), False),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), False),
        (RayActorError(error_msg="The actor died because its node has died."), True),
        (ActorUnavailableError("no answer", None), True),
        (GetTimeoutError(), True),
    ],
)
def test_a_worker_that_runs_out_of_memory_has_failed_and_one_on_a_dead_machine_has_not(
    error: RayError, machine: bool
) -> None:
    assert lost_with_machine(error) is machine
