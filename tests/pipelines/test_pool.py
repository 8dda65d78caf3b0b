"""A pool loses no row silently, and its results depend on the shards alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray

from audit.errors import AuditError, UsageError
from pipelines.ledger import Shard
from pipelines.pool import BARREN, Pool, start_ray

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Doubling:
    """Doubles numbers; `deadly` ones end the process, `bad` ones raise."""

    deadly: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()

    def lost(self, shard: Shard, kind: str, message: str) -> list[Any]:
        assert len(shard) == 1
        return [(shard.start, kind, message)]

    def commit(self, shard: Shard, pieces: list[Any]) -> list[Any]:
        return [row for piece in pieces for row in piece]


class Doubler:
    def run(self, work: Doubling, shard: Shard) -> list[Any]:
        return self.compute(work, shard)

    def compute(self, work: Doubling, shard: Shard) -> list[Any]:
        for number in range(shard.start, shard.stop):
            if number in work.deadly:
                os._exit(1)
            if number in work.bad:
                raise ValueError(f"{number} is bad")
        return [2 * number for number in range(shard.start, shard.stop)]

    def refuse(self) -> None:
        raise UsageError("not like this")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Workers cannot import a test module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start_ray(None, workers=2, cpus=1, gpus=0)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def pool(size: int = 2, retries: int = 0) -> Pool:
    actor = ray.remote(Doubler).options(num_cpus=1)
    return Pool(lambda: actor.remote(), size, retries)


def result(work: Doubling, shards: list[Shard], size: int = 2, retries: int = 0) -> dict[str, list[Any]]:
    workers = pool(size, retries)
    try:
        return {shard.name: rows for shard, rows in workers.map(work, shards)}
    finally:
        workers.close()


def cut(rows: int, size: int) -> list[Shard]:
    return [Shard(f"{start:05d}", None, start, min(start + size, rows)) for start in range(0, rows, size)]


def test_a_row_that_kills_its_worker_is_the_only_one_lost() -> None:
    found = result(Doubling(deadly=(5,)), cut(16, 8))
    rows = [row for name in sorted(found) for row in found[name]]
    lost = rows.pop(5)
    assert lost[:2] == (5, "worker_died")
    assert rows == [2 * number for number in range(16) if number != 5]


def test_a_row_that_raises_is_the_only_one_lost_and_says_why() -> None:
    found = result(Doubling(bad=(3, 4)), cut(8, 8))
    lost = [(3, "raised", "ValueError: 3 is bad"), (4, "raised", "ValueError: 4 is bad")]
    assert found == {"00000": [0, 2, 4, *lost, 10, 12, 14]}


def test_one_worker_and_two_give_the_same() -> None:
    work = Doubling(bad=(7,))
    assert result(work, cut(30, 4), size=1) == result(work, cut(30, 4), size=2)


def test_when_nothing_can_be_worked_it_ends_with_the_reason() -> None:
    rows = 2 * BARREN
    with pytest.raises(AuditError, match=f"{BARREN} rows in a row failed.*is bad"):
        result(Doubling(bad=tuple(range(rows))), cut(rows, 8))


def test_a_mistake_of_use_is_raised_as_it_is() -> None:
    workers = pool(1)
    with pytest.raises(UsageError, match="not like this"):
        workers.each("refuse")
    workers.close()


class Stillborn(Doubler):
    def __init__(self) -> None:
        raise OSError("no room")


def test_a_worker_that_cannot_start_is_not_blamed_on_a_row() -> None:
    actor = ray.remote(Stillborn).options(num_cpus=1)
    workers = Pool(lambda: actor.remote(), 1, 0)
    with pytest.raises(AuditError, match="cannot start.*no room"):
        list(workers.map(Doubling(), cut(1, 1)))
    workers.close()


@dataclass(frozen=True)
class Flaky(Doubling):
    """Fails at the first try and leaves a mark, so that the second succeeds."""

    mark: str = ""


class Forgiving(Doubler):
    def run(self, work: Flaky, shard: Shard) -> list[Any]:  # type: ignore[override]
        if not os.path.exists(work.mark):
            open(work.mark, "w").close()
            os._exit(1)
        return self.compute(work, shard)


def test_a_shard_that_fails_once_is_tried_again_whole(tmp_path: Any) -> None:
    actor = ray.remote(Forgiving).options(num_cpus=1)
    workers = Pool(lambda: actor.remote(), 1, 1)
    [(_, rows)] = workers.map(Flaky(mark=str(tmp_path / "mark")), cut(4, 4))
    workers.close()
    assert rows == [0, 2, 4, 6]
