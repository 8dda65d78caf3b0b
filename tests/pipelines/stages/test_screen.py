"""A shard is screened by its rows, each with the same score whatever happens to its neighbours."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from audit.record.ledger import Ledger, Shard, Tables
from pipelines.configuration.settings import load_config
from pipelines.engine.in_process import InProcess
from pipelines.engine.step import Step
from pipelines.engine.worker import Worker
from pipelines.stages import screen
from tests.support import driver
from tests.support.toy import write_config


def refuse(worker: Worker, shard: Shard) -> Tables:
    if shard.start <= driver.ODD < shard.stop:
        raise ValueError(f"row {driver.ODD} is odd")
    return screen._screen(worker, shard)


def test_a_shard_that_is_taken_apart_around_a_bad_row_scores_the_others_the_same(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    driver.write_captions(ledger)
    shard = Shard("00000", "00000", 4, 8)
    worker = Worker(load_config(write_config(tmp_path, out=ledger.uri))[0])
    step = Step("screen", "screen", "captions", ledger, refuse, partial(screen._on_lost_row, seeds=[0]))
    [(_, counts)] = chain.from_iterable(InProcess(worker, retries=0).map(step, [shard]))
    assert counts == {"screen": 4, "errors": 1}
    whole = screen._screen(worker, shard)["screen"].to_pylist()
    for found, expected in zip(ledger.read("screen").to_pylist(), whole, strict=True):
        assert found["caption_id"] == expected["caption_id"]
        if found["caption_id"] == f"{driver.ODD:02d}":
            assert (found["status"], found["caption_response"]) == ("error", None)
        else:
            assert found["caption_response"] == pytest.approx(expected["caption_response"], abs=2e-5)
    [error] = ledger.read("errors").to_pylist()
    assert (error["kind"], error["caption_id"]) == ("raised", f"{driver.ODD:02d}")
