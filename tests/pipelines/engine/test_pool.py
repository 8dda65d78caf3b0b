"""A pool loses no row silently, and its results depend on the shards alone. Its workers hold GPUs only while needed.

The cluster has two cores and a GPU. The GPU is fake: a number of the node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from audit.errors import AuditError, UsageError
from audit.record.ledger import Shard
from pipelines.engine import pool as pool_module
from pipelines.engine.pool import Pool
from pipelines.engine.schedule import BARREN
from tests.support.doubling import (
    Carrying,
    Different,
    Doubler,
    Doubling,
    Forgiving,
    Holder,
    Late,
    Stillborn,
    Told,
    Unready,
)
from tests.support.ray_cluster import cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    """This process is the driver."""
    with cluster(num_cpus=2, num_gpus=1) as started:
        ray.init(address=started.address, logging_level="ERROR", log_to_driver=False)
        yield
        ray.shutdown()


def maker(kind: type, *arguments: Any, cpus: int = 0, gpus: int = 0) -> Callable[[], Any]:
    actor = ray.remote(kind).options(num_cpus=cpus, num_gpus=gpus)
    return lambda: actor.remote(*arguments)


@pytest.fixture(scope="module")
def two(connected: None) -> Iterator[Pool]:
    """Two workers for one test after another, as for the steps of a run. A shard that fails is split at once."""
    workers = Pool(maker(Doubler), (2, 2), retries=0)
    yield workers
    workers.close()


@pytest.fixture
def started(connected: None) -> Iterator[Callable[..., Pool]]:
    """Starts pools of one worker that are closed after the test."""
    pools = []

    def start(make: Callable[[], Any], workers: tuple[int, int] = (1, 1), retries: int = 0, **more: Any) -> Pool:
        pools.append(Pool(make, workers, retries, **more))
        return pools[-1]

    yield start
    for each in pools:
        each.close()


def result(workers: Pool, work: Doubling, shards: list[Shard]) -> dict[str, list[Any]]:
    return {shard.name: rows for shard, rows in chain.from_iterable(workers.map(work, shards))}


def cut(rows: int, size: int) -> list[Shard]:
    return [Shard(f"{start:05d}", None, start, min(start + size, rows)) for start in range(0, rows, size)]


def test_a_row_that_kills_its_worker_is_the_only_one_lost(two: Pool) -> None:
    found = result(two, Doubling(deadly=(5,)), cut(8, 2))
    rows = [row for name in sorted(found) for row in found[name]]
    lost = rows.pop(5)
    assert lost[:2] == (5, "worker_died")
    assert rows == [2 * number for number in range(8) if number != 5]


def test_a_row_that_raises_is_the_only_one_lost_and_says_why(two: Pool) -> None:
    found = result(two, Doubling(bad=(3, 4)), cut(8, 8))
    lost = [(3, "raised", "ValueError: 3 is bad"), (4, "raised", "ValueError: 4 is bad")]
    assert found == {"00000": [0, 2, 4, *lost, 10, 12, 14]}


def test_a_lost_row_has_its_traceback_in_the_worker(two: Pool) -> None:
    found = result(two, Told(bad=(1,)), cut(2, 1))
    assert found["00000"] == [0]
    [text] = found["00001"]
    assert "in compute" in text
    assert "1 is bad" in text
    assert "pid=" not in text


def test_a_lost_row_has_the_traceback_of_its_last_attempt(started: Callable[..., Pool]) -> None:
    found = result(started(maker(Carrying), retries=1), Told(bad=(1,)), cut(2, 1))
    assert found["00000"] == [0]
    [text] = found["00001"]
    assert "in compute" in text
    assert "1 is bad, attempt 2" in text
    assert "pid=" not in text


def test_workers_that_ray_cannot_place_do_not_stop_the_others_and_any_number_gives_the_same(
    two: Pool, started: Callable[..., Pool]
) -> None:
    """Eight are asked for where there is room for one."""
    work, shards = Doubling(bad=(7,)), cut(30, 4)
    assert result(started(maker(Doubler, cpus=2), (8, 8)), work, shards) == result(two, work, shards)


def test_a_row_that_hangs_is_the_only_one_lost_once_its_time_is_up(
    started: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes whenever an attempt hangs, so that no other attempt takes too long on a slow machine."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * len(os.listdir(tmp_path)))
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "TICK", 0.05)
    found = result(started(maker(Doubler), seconds=1800.0), Doubling(hanging=(1,), folder=str(tmp_path)), cut(4, 2))
    assert found == {"00000": [0, (1, "timed_out", "no result after 1800 s")], "00002": [4, 6]}
    assert len(os.listdir(tmp_path)) == 2  # with another, alone


def test_there_are_more_workers_only_where_there_is_work_for_them(started: Callable[..., Pool]) -> None:
    made: list[Any] = []
    make = maker(Doubler)

    def counted() -> Any:
        made.append(make())
        return made[-1]

    workers = started(counted, (1, 2))
    counts = []
    for shards in (1, 2, 9):
        result(workers, Doubling(), cut(shards, 1))
        counts.append(len(made))
    assert counts == [1, 2, 2]


def test_a_full_disk_is_no_fault_of_any_row(started: Callable[..., Pool]) -> None:
    with pytest.raises(AuditError, match="there is no room"):
        result(started(maker(Doubler), retries=2), Doubling(full=3), cut(8, 4))


def test_every_worker_loads_what_is_needed_before_it_works(two: Pool) -> None:
    assert two.prepare("model") == {"model": "weights of model"}
    assert two.prepare("sscd") == {"sscd": "weights of sscd"}
    assert len(result(two, Doubling(), cut(8, 2))) == 4


def test_workers_that_load_different_weights_are_refused(started: Callable[..., Pool]) -> None:
    workers = started(maker(Different), retries=1)
    workers.prepare("model")
    with pytest.raises(AuditError, match=r"different weights of model: text_encoder \(as loaded\)"):
        result(workers, Doubling(deadly=(0,)), cut(1, 1))


def test_a_mistake_of_use_is_raised_as_it_is(two: Pool) -> None:
    with pytest.raises(UsageError, match="not like this"):
        two.ask("refuse")


def test_when_nothing_can_be_worked_it_ends_with_the_reason(two: Pool) -> None:
    rows = 2 * BARREN
    with pytest.raises(AuditError, match=f"{BARREN} consecutive rows failed.*is bad"):
        result(two, Doubling(bad=tuple(range(rows))), cut(rows, 8))


@pytest.mark.parametrize("kind", [Stillborn, Unready])
def test_a_worker_that_cannot_start_is_not_blamed_on_a_row(
    started: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    monkeypatch.setattr(pool_module, "STARTS", 1)
    with pytest.raises(AuditError, match="no worker can start.*no room"):
        result(started(maker(kind)), Doubling(), cut(1, 1))


def test_a_worker_that_starts_at_the_last_try_is_as_good_as_any(
    started: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "STARTS", 2)
    workers = started(maker(Late, str(tmp_path), pool_module.STARTS))
    assert result(workers, Doubling(), cut(2, 2)) == {"00000": [0, 2]}
    assert len(os.listdir(tmp_path)) == pool_module.STARTS


def test_a_shard_that_fails_once_is_tried_again_whole(started: Callable[..., Pool], tmp_path: Path) -> None:
    workers = started(maker(Forgiving), retries=1)
    assert result(workers, Doubling(folder=str(tmp_path)), cut(4, 4)) == {"00000": [0, 2, 4, 6]}


WITH_MODEL, WITHOUT = [{"model"}, 1], [set(), 0]


def holders(started: Callable[..., Pool], workers: tuple[int, int]) -> Pool:
    heavy, light = (maker(Holder, cpus=1, gpus=gpus) for gpus in (1, 0))
    made = started(heavy, workers, make_light=light)
    made.prepare("model")
    return made


def held(workers: Pool, *needs: str) -> list[Any]:
    return list(result(workers, Doubling(needs=needs), cut(8, 1)).values())


def test_work_without_models_soon_holds_no_gpu_and_models_are_loaded_again_after_it(
    started: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = holders(started, (2, 2))  # two are asked for, but there is a GPU for one
    assert held(workers, "model") == [WITH_MODEL] * 8
    assert held(workers) == [WITH_MODEL] * 8  # a short step starts no other workers
    monkeypatch.setattr(pool_module, "PATIENCE", 0.0)
    assert held(workers) == [WITHOUT] * 8
    assert held(workers, "model") == [WITH_MODEL] * 8


def test_a_question_about_a_model_goes_to_a_worker_that_has_it(
    started: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = holders(started, (1, 1))
    monkeypatch.setattr(pool_module, "PATIENCE", 0.0)
    assert held(workers) == [WITHOUT] * 8
    assert workers.ask("run", Doubling(), cut(1, 1)[0], 1) == WITH_MODEL
