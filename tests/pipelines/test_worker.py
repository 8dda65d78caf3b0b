"""What a worker looks at before it works."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from audit.errors import UsageError
from pipelines.context import Step
from pipelines.ledger import Ledger, Shard, Tables
from pipelines.settings import load_config
from pipelines.worker import Worker
from tests.pipelines.toy import write_config


def one_row(worker: Worker, shard: Shard) -> Tables:
    return {"found": pa.table({"row": [shard.start]})}


def test_a_machine_that_does_not_share_the_run_writes_none_of_its_own(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)
    step, shard = Step("find", "found", "rows", ledger, one_row), Shard("00000", None, 0, 1)
    with pytest.raises(UsageError, match=r"(?s)run: the machine \S+ sees nothing there.*all machines share"):
        Worker(config).run(step, shard)
    assert not Path(config.out).exists()
    ledger.write_bytes("manifest.json", b"{}")
    assert Worker(config).run(step, shard) == {"found": 1}
