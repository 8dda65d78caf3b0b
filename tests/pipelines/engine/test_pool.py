"""A pool loses no row silently, and its results depend on the shards alone."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from audit.errors import AuditError, UsageError
from audit.record.filesystem import DISK_FULL
from audit.record.ledger import Shard
from pipelines.engine import pool as pool_module
from pipelines.engine.pool import STARTS, Pool
from pipelines.engine.ray_session import start_ray, stop_ray
from pipelines.engine.schedule import BARREN
from pipelines.engine.tracebacks import portable_errors

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Doubling:
    """Doubles numbers; `deadly` ones end the process, `hanging` ones never end, `bad` ones raise, `full` is no room."""

    deadly: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    full: int | None = None
    needs: tuple[str, ...] = ()
    hung: str = ""  # folder with one file per attempt that hangs

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[Any]:
        assert len(shard) == 1
        return [(shard.start, kind, message)]

    def commit(self, shard: Shard, pieces: list[Any]) -> list[Any]:
        return [row for piece in pieces for row in piece]


class Doubler:
    def prepare(self, *needs: str) -> dict[str, str]:
        return {name: f"weights of {name}" for name in needs}

    def run(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        return self.compute(work, shard, number)

    def compute(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        for number in range(shard.start, shard.stop):
            if number in work.deadly:
                os._exit(1)
            if number in work.hanging:
                tempfile.mkstemp(dir=work.hung)
                threading.Event().wait()
            if number in work.bad:
                raise ValueError(f"{number} is bad")
            if number == work.full:
                raise AuditError("there is no room", kind=DISK_FULL)
        return [2 * number for number in range(shard.start, shard.stop)]

    def refuse(self) -> None:
        raise UsageError("not like this")

    def where(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Workers cannot import a test module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start_ray(None, workers=2, cpus=1, gpus=0)
    yield
    stop_ray()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def pool(kind: type = Doubler, workers: tuple[int, int] = (2, 2), retries: int = 0, **more: Any) -> Pool:
    actor = ray.remote(kind).options(num_cpus=1)
    return Pool(lambda: actor.remote(), workers, retries, **more)


def result(work: Doubling, shards: list[Shard], **options: Any) -> dict[str, list[Any]]:
    workers = pool(**options)
    try:
        return {shard.name: rows for shard, rows in chain.from_iterable(workers.map(work, shards))}
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


@dataclass(frozen=True)
class Told(Doubling):
    """Returns the number of the attempt and the traceback of a lost row."""

    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[Any]:
        return [traceback]


class Carrying(Doubler):
    """Sends its exceptions as `RemoteWorker` does."""

    @portable_errors
    def compute(self, work: Doubling, shard: Shard, number: int) -> list[Any]:
        if shard.start in work.bad:
            raise UnpicklableError(str(shard.start), f"attempt {number}")
        return super().compute(work, shard, number)


class UnpicklableError(Exception):
    """It can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} is bad, {second}")


@pytest.mark.parametrize("kind", [Doubler, Carrying])
def test_a_lost_row_has_the_traceback_of_its_last_attempt_in_the_worker(kind: type) -> None:
    found = result(Told(bad=(1,)), cut(2, 1), kind=kind, workers=(1, 1), retries=1)
    assert found["00000"] == [0]
    [text] = found["00001"]
    assert "in compute" in text
    assert "1 is bad" in text
    assert "pid=" not in text
    assert "attempt 2" in text or kind is Doubler


def test_one_worker_and_two_give_the_same() -> None:
    work = Doubling(bad=(7,))
    assert result(work, cut(30, 4), workers=(1, 1)) == result(work, cut(30, 4))


def test_a_row_that_hangs_is_the_only_one_lost_once_its_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes whenever an attempt hangs, so that no other attempt takes too long on a slow machine."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * len(os.listdir(tmp_path)))
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "TICK", 0.05)
    found = result(Doubling(hanging=(2,), hung=str(tmp_path)), cut(8, 4), workers=(1, 1), seconds=1800.0)
    assert found == {"00000": [0, 2, (2, "timed_out", "no result after 1800 s"), 6], "00004": [8, 10, 12, 14]}
    assert len(os.listdir(tmp_path)) == 3  # with three others, with another, alone


def test_workers_that_ray_cannot_place_do_not_stop_the_others() -> None:
    """Eight are asked for where there is room for two."""
    assert result(Doubling(), cut(12, 2), workers=(8, 8)) == result(Doubling(), cut(12, 2), workers=(1, 1))


def test_there_are_more_workers_only_where_there_is_work_for_them() -> None:
    made: list[Any] = []
    actor = ray.remote(Doubler).options(num_cpus=0)

    def make() -> Any:
        made.append(actor.remote())
        return made[-1]

    workers = Pool(make, (1, 4), 0)
    counts = []
    for shards in (1, 3, 9):
        list(workers.map(Doubling(), cut(shards, 1)))
        counts.append(len(made))
    workers.close()
    assert counts == [1, 3, 4]


def test_a_full_disk_is_no_fault_of_any_row() -> None:
    with pytest.raises(AuditError, match="there is no room"):
        result(Doubling(full=3), cut(8, 4), workers=(1, 1), retries=2)


def test_every_worker_loads_what_is_needed_before_it_works() -> None:
    workers = pool()
    assert workers.prepare("model") == {"model": "weights of model"}
    assert workers.prepare("sscd") == {"sscd": "weights of sscd"}
    assert len(list(chain.from_iterable(workers.map(Doubling(), cut(8, 2))))) == 4
    workers.close()


class Different(Doubler):
    def prepare(self, *needs: str) -> dict[str, dict[str, str]]:
        return {name: {"unet": "the same", "text_encoder (as loaded)": str(os.getpid())} for name in needs}


def test_workers_that_load_different_weights_are_refused() -> None:
    workers = pool(Different, workers=(1, 1), retries=1)
    workers.prepare("model")
    with pytest.raises(AuditError, match=r"different weights of model: text_encoder \(as loaded\)"):
        list(workers.map(Doubling(deadly=(0,)), cut(1, 1)))
    workers.close()


def test_when_nothing_can_be_worked_it_ends_with_the_reason() -> None:
    rows = 2 * BARREN
    with pytest.raises(AuditError, match=f"{BARREN} consecutive rows failed.*is bad"):
        result(Doubling(bad=tuple(range(rows))), cut(rows, 8), workers=(1, 1))


def test_a_mistake_of_use_is_raised_as_it_is() -> None:
    workers = pool(workers=(1, 1))
    with pytest.raises(UsageError, match="not like this"):
        workers.ask("refuse")
    workers.close()


class Stillborn(Doubler):
    def __init__(self) -> None:
        raise OSError("no room")


class Unready(Doubler):
    def prepare(self, *needs: str) -> dict[str, str]:
        raise OSError("no room")


@pytest.mark.parametrize("kind", [Stillborn, Unready])
def test_a_worker_that_cannot_start_is_not_blamed_on_a_row(kind: type) -> None:
    workers = pool(kind, workers=(1, 1))
    with pytest.raises(AuditError, match="no worker can start.*no room"):
        list(workers.map(Doubling(), cut(1, 1)))
    workers.close()


def test_a_worker_that_starts_at_the_last_try_is_as_good_as_any(tmp_path: Path) -> None:
    class Late(Doubler):
        def prepare(self, *needs: str) -> dict[str, str]:
            tries = len(list(tmp_path.iterdir()))
            (tmp_path / str(tries)).touch()
            if tries < STARTS - 1:
                os._exit(1)
            return {}

    assert result(Doubling(), cut(2, 2), kind=Late, workers=(1, 1)) == {"00000": [0, 2]}


@dataclass(frozen=True)
class Flaky(Doubling):
    """Fails at the first try and leaves a mark, so that the second succeeds."""

    mark: str = ""


class Forgiving(Doubler):
    def run(self, work: Flaky, shard: Shard, number: int) -> list[Any]:  # type: ignore[override]
        if not os.path.exists(work.mark):
            open(work.mark, "w").close()
            os._exit(1)
        return self.compute(work, shard, number)


def test_a_shard_that_fails_once_is_tried_again_whole(tmp_path: Any) -> None:
    work = Flaky(mark=str(tmp_path / "mark"))
    assert result(work, cut(4, 4), kind=Forgiving, workers=(1, 1), retries=1) == {"00000": [0, 2, 4, 6]}
