"""Workers hold their GPUs only while models are needed. Ray's GPUs are fake: a number of the node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import ray

from audit.record.ledger import Shard
from pipelines.engine import pool
from pipelines.engine.ray_token import private_token

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Holding:
    """Work that needs models, or none."""

    needs: tuple[str, ...] = ()

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> Any:
        raise AssertionError(message)

    def commit(self, shard: Shard, pieces: list[Any]) -> Any:
        return pieces[0]


class Holder:
    def __init__(self) -> None:
        self.loaded: set[str] = set()

    def prepare(self, *needs: str) -> dict[str, str]:
        self.loaded.update(needs)
        return {name: f"weights of {name}" for name in needs}

    def run(self, work: Holding, shard: Shard, number: int) -> tuple[set[str], int]:
        """Return what is loaded, and how many GPUs this worker holds."""
        return self.loaded, len(ray.get_runtime_context().get_accelerator_ids()["GPU"])


@pytest.fixture(scope="module", autouse=True)
def one_gpu() -> Iterator[None]:
    private_token()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def workers() -> Iterator[pool.Pool]:
    def make(gpus: float) -> Any:
        return ray.remote(Holder).options(num_cpus=1, num_gpus=gpus).remote()

    # Two are asked for, but there is a GPU for one.
    made = pool.Pool(lambda: make(1), (2, 2), 0, make_light=lambda: make(0))
    made.prepare("model")
    yield made
    made.close()


def seen(workers: pool.Pool, *needs: str) -> list[Any]:
    shards = [Shard(f"{at}", None, at, at + 1) for at in range(8)]
    return [result for _, result in chain.from_iterable(workers.map(Holding(needs), shards))]


def test_work_without_models_soon_holds_no_gpu_and_models_are_loaded_again_after_it(
    workers: pool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model, without = ({"model"}, 1), (set(), 0)
    assert seen(workers, "model") == [with_model] * 8
    assert seen(workers) == [with_model] * 8  # a short step starts no other workers
    monkeypatch.setattr(pool, "PATIENCE", 0.0)
    assert seen(workers) == [without] * 8
    assert seen(workers, "model") == [with_model] * 8


def test_a_question_about_a_model_goes_to_a_worker_that_has_it(
    workers: pool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 0.0)
    seen(workers)
    assert workers.ask("run", Holding(), Shard("0", None, 0, 1), 1) == ({"model"}, 1)
