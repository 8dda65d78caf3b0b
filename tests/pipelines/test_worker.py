"""What a worker loads, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audit.errors import AuditError
from pipelines.ledger import Ledger
from pipelines.manifest import Manifest
from pipelines.settings import load_config
from pipelines.worker import Worker


@pytest.fixture
def configuration(make_dataset: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_runs_the_model_in_the_dtype_of_the_configuration(configuration: Path, dtype: str) -> None:
    config, _ = load_config(configuration, [f"engine.dtype={dtype}"])
    worker = Worker(config)
    assert worker.prepare("model")["model"]["dtype"] == dtype
    assert worker.model.unet.dtype == worker.model.text_encoder.dtype == getattr(torch, dtype)


def test_the_manifest_records_the_dtype_and_refuses_another_one(configuration: Path) -> None:
    """`auto` may mean another dtype on the machine that resumes a run."""
    config, given = load_config(configuration)
    manifest = Manifest.open(Ledger(config.out), config, given)
    loaded = Worker(config).prepare("model")["model"]
    manifest.model("model", loaded)
    assert manifest.data["dtype"] == "float32"
    with pytest.raises(AuditError, match="model: dtype has changed since this run began"):
        manifest.model("model", loaded | {"dtype": "bfloat16"})
