"""A step replaces a lost row by rows of its tables and by a row of `errors` with the worker's traceback."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from pipelines.engine.step import Step


def on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    error = {"stage": "s", "row": shard.start, "kind": kind, "message": message}
    return {"main": pa.table({"n": [shard.start]}), "errors": errors_table([error])}


@pytest.mark.parametrize("traceback", ["Traceback\n  in f", None])
def test_a_lost_row_has_the_traceback_of_the_worker_or_none(tmp_path: Path, traceback: str | None) -> None:
    step = Step("s", "main", "rows", Ledger(str(tmp_path)), lambda worker, shard: {}, on_lost_row)
    tables = step.lost(Shard("0", None, 3, 4), "raised", "m", traceback)
    assert tables["main"].to_pylist() == [{"n": 3}]
    assert tables["errors"].schema.equals(schema.ERRORS)
    [error] = tables["errors"].to_pylist()
    assert (error["row"], error["kind"], error["message"], error["traceback"]) == (3, "raised", "m", traceback)
