"""What a worker loads, and what it says of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger, Shard, Tables
from pipelines.configuration.settings import load_config
from pipelines.engine.manifest import Manifest
from pipelines.engine.models import load
from pipelines.engine.step import Step
from pipelines.engine.worker import Worker
from tests.support.toy import MODEL, write_config


def one_row(worker: Worker, shard: Shard) -> Tables:
    return {"found": pa.table({"row": [shard.start]})}


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
    assert manifest.data.dtype == "float32"
    with pytest.raises(AuditError, match="model: dtype has changed since this run began"):
        manifest.model("model", loaded | {"dtype": "bfloat16"})


def test_a_machine_that_does_not_share_the_run_writes_none_of_its_own(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)
    step, shard = Step("find", "found", "rows", ledger, one_row), Shard("00000", None, 0, 1)
    with pytest.raises(
        UsageError,
        match=r"(?s)run: the run has begun, but the machine \S+ sees an empty folder here.*all machines share",
    ):
        Worker(config).run(step, shard)
    assert not Path(config.out).exists()
    ledger.write_bytes("manifest.json", b"{}")
    assert Worker(config).run(step, shard) == {"found": 1}


def test_a_worker_says_what_it_runs_and_not_only_what_it_has_read(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path), ["model.resolution=48"])
    worker = Worker(config)
    before = worker.prepare("model")["model"]
    assert before["resolution"] == "48 x 48"
    other = Worker(config)
    other.__dict__["model"] = load(config.model, None, "cpu", torch.float16)  # the same files, other numbers
    after = other.prepare("model")["model"]
    networks = ("unet", "text_encoder", "vae")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{name} (as loaded)" for name in networks} | {"dtype"}


def test_a_worker_tells_how_its_model_is_sampled_and_what_it_does_not_read(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path))
    about = Worker(config).about(["model"])["model"]
    assert about["sampling"]["clip_sample"] is False
    assert about["numerics"]["tf32_convolutions"] is False
    assert about["scheduler"] == {"class": "DDIMScheduler", "without_effect": []}
    assert about["files_not_read"] == []
    assert about["uncalibrated"] == []


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: out of memory", RuntimeError),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", RuntimeError),
        ("CUDA error: an illegal memory access was encountered", UsageError),
    ],
)
def test_a_worker_outlives_a_gpu_that_is_full_and_no_other_error_of_it(
    tmp_path: Path, message: str, kind: type[Exception]
) -> None:
    def fail(worker: Worker, shard: Shard) -> Tables:
        raise RuntimeError(message)

    config, _ = load_config(write_config(tmp_path))
    step = Step("find", "found", "rows", Ledger(config.out), fail)
    with pytest.raises(kind, match="CUDA error"):
        Worker(config, own_process=False).compute(step, Shard("00000", None, 0, 1))


def test_a_worker_names_the_tensor_that_is_nan_or_missing(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    file = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file)
    config, _ = load_config(write_config(tmp_path, model="model"))
    with pytest.raises(AuditError, match="unet: conv_in.bias has values that are NaN or infinite"):
        Worker(config).prepare("model")
    del tensors["conv_in.bias"]
    save_file(tensors, file)
    with pytest.raises(AuditError, match=r"unet: 1 of its 208 weights are missing \(conv_in.bias\)"):
        Worker(config).prepare("model")
