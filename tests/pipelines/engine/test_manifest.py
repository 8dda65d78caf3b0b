"""The manifest, which is kept true while a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.errors import AuditError
from audit.record.ledger import Ledger, errors_table
from pipelines.configuration.settings import load_config
from pipelines.engine.manifest import Manifest
from tests.support.toy import write_config


def test_errors_are_counted_with_their_own_stage_whichever_stage_left_them(tmp_path: Path) -> None:
    config, given = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)
    manifest = Manifest.open(ledger, config, given)
    with manifest.stage("generate"):
        pass
    with manifest.stage("confirm"):
        rows = [{"stage": stage, "caption_id": "a", "kind": "odd"} for stage in ("generate", "confirm", "generate")]
        ledger.write("errors", "generations-fresh-00000", errors_table(rows))
    assert {name: stage.errors for name, stage in manifest.data.stages.items()} == {"generate": 2, "confirm": 1}


def test_a_run_without_results_may_be_mended(tmp_path: Path) -> None:
    config, given = load_config(write_config(tmp_path))
    mended = config.model_copy(update={"screen": config.screen.model_copy(update={"seeds": [5]})})
    ledger = Ledger(config.out)
    refused = Manifest.open(ledger, config, given)
    refused.begin()
    refused.end(AuditError("no such file"))
    assert Manifest.open(ledger, mended, given).data.seeds.screen == [5]
    with refused.stage("ingest"):
        pass
    with pytest.raises(AuditError, match="screen.seeds was .* when this run began"):
        Manifest.open(ledger, mended, given)


def test_a_resumed_run_samples_as_it_began(tmp_path: Path) -> None:
    config, given = load_config(write_config(tmp_path))
    manifest = Manifest.open(Ledger(config.out), config, given)
    about = {"sampling": {"clip_sample": False}, "files_not_read": ["safety_checker/ (2 files)"]}
    manifest.checkpoint("model", about)
    manifest.checkpoint("model", about | {"files_not_read": []})
    assert manifest.data.checkpoints["model"].model_dump(exclude_unset=True) == about
    with pytest.raises(AuditError, match="clip_sample has changed since this run began"):
        manifest.checkpoint("model", {"sampling": {"clip_sample": True}})


def test_batch_sizes_that_workers_find_are_recorded(tmp_path: Path) -> None:
    config, given = load_config(write_config(tmp_path))
    manifest = Manifest.open(Ledger(config.out), config, given)
    about = {"sampling": {}, "batch_sizes": {}}
    for sizes in ({}, {"screen at 64 x 64": 256}, {"generate at 64 x 64": 32}):
        manifest.checkpoint("model", about | {"batch_sizes": sizes})
    recorded = manifest.data.checkpoints["model"].batch_sizes
    assert recorded == {"screen at 64 x 64": 256, "generate at 64 x 64": 32}
