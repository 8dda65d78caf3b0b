"""Whatever dies, hangs, is lost or comes too late, in whatever order: every row ends once, in a table or in `errors`.

Hypothesis plays the workers, the machines and the driver; the schedule and the ledger are the real ones, and so is the
folder. The disk counts its operations, and can be told after how many of them the process that writes is dead.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.engine.schedule import BARREN, MOVES, Attempt, Schedule
from pipelines.engine.step import Step
from pipelines.engine.tracebacks import WorkerError

ROWS = 6
NEVER = 10**6


class ProcessDiedError(Exception):
    """The process that was writing is gone."""


class Disk(LocalFileSystem):
    """The local file system, to a process that lives for `left` more operations."""

    left = NEVER

    def _spend(self) -> None:
        if self.left == 0:
            raise ProcessDiedError
        self.left -= 1

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if "w" in mode:
            self._spend()
        return super().open(path, mode, **more)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        self._spend()
        super().mv(path1, path2, **more)

    def rm(self, path: str, *rest: Any, **more: Any) -> None:
        self._spend()
        super().rm(path, *rest, **more)


def tables(numbers: list[int], status: str, kind: str | None) -> Tables:
    """Two tables with one row per number; 0, and what is lost, has a row of `errors`."""
    failed = [n for n in numbers if kind or n == 0]
    errors = [{"stage": "s", "row": n, "kind": kind or "odd", "message": "m"} for n in failed]
    main = pa.table({"n": pa.array(numbers, pa.int64()), "status": pa.repeat(status, len(numbers))})
    return {"main": main, "other": main.select(["n"]), "errors": errors_table(errors)}


def work(worker: Any, shard: Shard) -> Tables:
    return tables(list(range(shard.start, shard.stop)), "ok", None)


def left(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    return tables([shard.start], "lost", kind)


class Runs(RuleBasedStateMachine):
    """One run, and as many drivers as it takes."""

    @initialize(
        deadly=st.sets(st.integers(0, ROWS - 1), max_size=2),
        size=st.integers(1, ROWS),
        retries=st.integers(0, 1),
        luck=st.lists(st.booleans(), max_size=8),
        last=st.integers(0, 9),
    )
    def begin(self, deadly: set[int], size: int, retries: int, luck: list[bool], last: int) -> None:
        """`luck`: of the first attempts when all else is over; `last`: how long a writer lives then."""
        self.size, self.retries, self.luck, self.last = size, retries, luck, last
        self.folder, self.disk = tempfile.mkdtemp(), Disk()
        self.ledger = Ledger(self.folder)
        self.ledger.filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(self.disk))
        self.step = Step("numbers", "main", "rows", self.ledger, work, left)
        self.deadly, self.unlucky = deadly, set(deadly)
        self.late: list[Attempt] = []
        self.drivers = 0
        self.drive()

    def drive(self) -> None:
        """A driver starts, as `Run.execute` does."""
        self.drivers += 1
        self.disk.left = NEVER
        self.ledger.sweep()
        done = set(self.ledger.parts("main"))
        todo = [shard for shard in slices("", None, ROWS, self.size) if shard.name not in done]
        self.schedule = Schedule(self.step, todo, self.retries)
        self.at_work: list[Attempt] = []
        self.finished: list[str] = []

    def worker(self, attempt: Attempt, operations: int) -> Tables | dict[str, int]:
        """What `Worker.run` and `Worker.compute` do, by a process that lives that long."""
        if self.deadly.intersection(range(attempt.shard.start, attempt.shard.stop)):
            raise ProcessDiedError
        found = self.step.work(None, attempt.shard)  # type: ignore[arg-type]
        if attempt.piece:
            return found
        self.disk.left = operations
        try:
            return self.step.commit(attempt.shard, [found])
        finally:
            self.disk.left = NEVER

    def back(self, attempt: Attempt, answer: Callable[[], Any], operations: int = NEVER) -> None:
        """The schedule hears of an attempt; the driver lives that long."""
        self.disk.left = operations
        try:
            self.finished += [shard.name for shard, _ in answer()]
        except ProcessDiedError:
            self.late += self.at_work
            self.drive()
        self.disk.left = NEVER

    def fails(self, attempt: Attempt, kind: str, operations: int = NEVER) -> None:
        self.unlucky.update(range(attempt.shard.start, attempt.shard.stop))
        self.back(attempt, partial(self.schedule.failed, attempt, kind, "m"), operations)

    def one(self, data: st.DataObject) -> Attempt:
        return self.at_work.pop(data.draw(st.integers(0, len(self.at_work) - 1)))

    @rule()
    def a_worker_takes_a_shard(self) -> None:
        if attempt := self.schedule.take():
            self.at_work.append(attempt)

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), operations=st.one_of(st.just(NEVER), st.integers(0, 8)))
    def a_worker_is_done(self, data: st.DataObject, operations: int) -> None:
        attempt = self.one(data)
        try:
            result = self.worker(attempt, NEVER)
        except ProcessDiedError:
            self.fails(attempt, "worker_died", operations)
        else:
            self.back(attempt, partial(self.schedule.done, attempt, result), operations)

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), operations=st.integers(0, 9), machine=st.booleans())
    def a_worker_dies_writing(self, data: st.DataObject, operations: int, machine: bool) -> None:
        attempt = self.one(data)
        with suppress(ProcessDiedError):
            self.worker(attempt, operations)
        if machine:
            self.unlucky.update(range(attempt.shard.start, attempt.shard.stop))
            self.back(attempt, partial(self.schedule.moved, attempt, "m"))
        else:
            self.fails(attempt, "worker_died")

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), machine=st.booleans())
    def a_worker_is_given_up_and_goes_on(self, data: st.DataObject, machine: bool) -> None:
        attempt = self.one(data)
        self.late.append(attempt)
        if machine:
            self.unlucky.update(range(attempt.shard.start, attempt.shard.stop))
            self.back(attempt, partial(self.schedule.moved, attempt, "m"))
        else:
            self.fails(attempt, "timed_out")

    @precondition(lambda self: self.late)
    @rule(operations=st.one_of(st.just(NEVER), st.integers(0, 9)))
    def a_worker_comes_too_late(self, operations: int) -> None:
        with suppress(ProcessDiedError):
            self.worker(self.late.pop(0), operations)

    @rule()
    def the_driver_dies(self) -> None:
        self.late += self.at_work
        self.drive()

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        answers = 0
        operations = self.last
        while attempt := (self.at_work.pop() if self.at_work else self.schedule.take()):
            answers += 1
            assert answers < 1000, "it does not end"
            drivers = self.drivers
            try:
                if self.luck and not self.luck.pop():
                    raise ProcessDiedError
                result = self.worker(attempt, NEVER)
            except ProcessDiedError:
                self.fails(attempt, "worker_died", operations)
            else:
                self.back(attempt, partial(self.schedule.done, attempt, result), operations)
            operations = operations if self.drivers == drivers else NEVER
        while self.late:
            self.a_worker_comes_too_late(self.last)
        self.check()
        shutil.rmtree(self.folder)

    def check(self) -> None:
        assert sorted(set(self.finished)) == sorted(self.finished)
        main = self.ledger.read("main").to_pylist()
        assert [row["n"] for row in main] == self.ledger.read("other")["n"].to_pylist() == list(range(ROWS))
        lost = {row["n"] for row in main if row["status"] == "lost"}
        assert self.deadly <= lost <= self.unlucky
        errors = self.ledger.read("errors").to_pylist()
        assert sorted(row["row"] for row in errors) == sorted(lost | {0})
        assert {row["row"] for row in errors if row["kind"] != "odd"} == lost


@pytest.mark.slow
class TestRuns(Runs.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(
        max_examples=max(100, settings.default.max_examples),  # rare bugs need so many
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def attempts(schedule: Schedule, outcome: Callable[[Attempt], None]) -> list[tuple[int, int]]:
    """(start, stop) of every attempt until the end."""
    seen = []
    while attempt := schedule.take():
        seen.append((attempt.shard.start, attempt.shard.stop))
        outcome(attempt)
    return seen


class Nothing:
    def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[int]:
        return []

    def commit(self, shard: Shard, pieces: list[list[int]]) -> list[int]:
        return [row for piece in pieces for row in piece]


def test_a_deadly_row_costs_about_as_many_workers_as_its_shard_can_be_halved() -> None:
    schedule = Schedule(Nothing(), [Shard("0", None, 0, 1024)], retries=1)

    def outcome(attempt: Attempt) -> None:
        if attempt.shard.start <= 700 < attempt.shard.stop:
            schedule.failed(attempt, "worker_died", "m")
        else:
            schedule.done(attempt, [])

    seen = attempts(schedule, outcome)
    assert len([at for at in seen if at[0] <= 700 < at[1]]) == 2 + 9 + 2  # whole, halves, the row
    assert len(seen) == 13 + 10


def test_a_shard_whose_machine_is_lost_is_moved_a_bounded_number_of_times_before_it_is_to_blame() -> None:
    schedule = Schedule(Nothing(), [Shard("0", None, 0, 1)], retries=2)
    seen = attempts(schedule, lambda attempt: schedule.moved(attempt, "m"))
    assert len(seen) == MOVES + 1 + 2


def test_the_order_in_which_pieces_come_back_does_not_matter() -> None:
    schedule = Schedule(Nothing(), [Shard("0", None, 0, 4)], retries=0)
    whole = schedule.take()
    assert whole is not None
    assert schedule.failed(whole, "raised", "m") == []
    first, second = schedule.take(), schedule.take()
    assert first is not None
    assert second is not None
    assert schedule.done(second, [2, 3]) == []
    assert schedule.done(first, [0, 1]) == [(whole.shard, [0, 1, 2, 3])]


def test_nothing_but_failures_end_it() -> None:
    schedule = Schedule(Nothing(), [Shard("0", None, 0, 2 * BARREN)], retries=0)
    with pytest.raises(AuditError, match=f"{BARREN} consecutive rows failed; the last error: raised: m"):
        attempts(schedule, lambda attempt: schedule.failed(attempt, "raised", "m"))


def test_the_traceback_of_the_last_attempt_goes_with_the_row_that_is_lost() -> None:
    class Work(Nothing):
        def lost(self, shard: Shard, kind: str, message: str, traceback: str | None) -> list[Any]:
            return [(kind, message, traceback)]

    schedule = Schedule(Work(), [Shard("0", None, 0, 1)], retries=1)
    first = schedule.take()
    assert first is not None
    assert first.number == 1
    assert schedule.failed(first, "raised", "m", "Traceback 1") == []
    second = schedule.take()
    assert second is not None
    assert second.number == 2
    assert schedule.failed(second, "raised", "m", "Traceback 2") == [(second.whole, [("raised", "m", "Traceback 2")])]


@pytest.mark.parametrize("rows", [1, 2 * BARREN])
def test_an_error_that_ends_the_run_has_the_traceback_of_the_worker_as_its_cause(rows: int) -> None:
    """A row that may not be lost, and too many rows in a row."""
    ledger = Ledger("memory://causes")
    work = Nothing() if rows > 1 else Step("numbers", "main", "rows", ledger, lambda worker, shard: {})
    schedule = Schedule(work, [Shard("0", None, 0, rows)], retries=0)
    with pytest.raises(AuditError, match="m\nThe folder `logs` of the run has the tracebacks") as caught:
        attempts(schedule, lambda attempt: schedule.failed(attempt, "raised", "m", "Traceback"))
    assert isinstance(caught.value.__cause__, WorkerError)
    assert caught.value.__cause__.traceback == "Traceback"
    assert caught.value.kind == "raised"
