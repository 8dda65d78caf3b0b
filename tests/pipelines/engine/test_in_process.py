"""Steps run in this process as they do on a pool: failed shards are retried and split, and only bad rows are lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest

from audit.errors import AuditError, UsageError
from audit.record.filesystem import DISK_FULL
from audit.record.ledger import Shard
from pipelines.engine.in_process import InProcess


@dataclass
class Doubling:
    """A map that doubles row numbers, and the worker that does it. Rows in `raising` raise their error."""

    raising: dict[int, Exception] = field(default_factory=dict)
    attempts: Counter[tuple[int, int]] = field(default_factory=Counter)
    title: str = "double"

    def lost(self, shard: Shard, kind: str, message: str, traceback: str) -> list[Any]:
        assert "in compute" in traceback
        return [(kind, message)]

    def commit(self, shard: Shard, pieces: list[Any]) -> list[Any]:
        return list(chain.from_iterable(pieces))

    def run(self, work: Doubling, shard: Shard) -> list[Any]:
        return self.compute(work, shard)

    def compute(self, work: Doubling, shard: Shard) -> list[Any]:
        self.attempts[shard.start, shard.stop] += 1
        rows = range(shard.start, shard.stop)
        for row in rows:
            if row in self.raising:
                raise self.raising[row]
        return [2 * row for row in rows]


SHARDS = [Shard("a", None, 0, 4), Shard("b", None, 4, 8)]


def result(work: Doubling, retries: int = 0) -> dict[str, list[Any]]:
    return {shard.name: rows for shard, rows in chain.from_iterable(InProcess(work, retries).map(work, SHARDS))}


def test_every_shard_is_finished() -> None:
    assert result(Doubling()) == {"a": [0, 2, 4, 6], "b": [8, 10, 12, 14]}


def test_a_row_that_raises_is_the_only_one_lost_after_its_retries() -> None:
    work = Doubling({1: ValueError("1 is bad")})
    assert result(work, retries=2) == {"a": [0, ("raised", "ValueError: 1 is bad"), 4, 6], "b": [8, 10, 12, 14]}
    assert work.attempts == {(0, 4): 3, (0, 2): 1, (2, 4): 1, (0, 1): 1, (1, 2): 3, (4, 8): 1}


@pytest.mark.parametrize("error", [UsageError("not like this"), AuditError("there is no room", kind=DISK_FULL)])
def test_what_no_retry_can_mend_ends_the_run(error: AuditError) -> None:
    work = Doubling({1: error})
    with pytest.raises(type(error), match=error.what):
        result(work, retries=2)
    assert work.attempts == {(0, 4): 1}
