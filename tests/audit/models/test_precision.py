"""What depends on the dtype of a model, and what stays in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import audit
from audit.errors import AuditError, UsageError
from audit.mitigation.serving import serve
from audit.models.precision import numerics, resolve_dtype, use_exact_float32, uses_tf32

CAPTIONS = [f"{thing} number {number}" for thing in ("lamp", "river", "coat") for number in range(34)]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest, data: Path) -> audit.Model:
    return audit.load_model(data / "toy-model", dtype=request.param)


def test_auto_is_float32_on_the_cpu() -> None:
    assert resolve_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_used_on_any_device(name: str) -> None:
    assert resolve_dtype(name, "cpu") == resolve_dtype(name, "cuda") == getattr(torch, name)


def test_rounding_to_tf32_is_part_of_what_scores_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert uses_tf32(gpu, torch.float32)
    assert not uses_tf32(cpu, torch.float32)
    assert not uses_tf32(gpu, torch.bfloat16)
    use_exact_float32()
    assert numerics() == dict.fromkeys(("tf32_products", "tf32_convolutions", "cudnn_benchmark"), False)
    assert not uses_tf32(gpu, torch.float32)


def test_a_device_without_float64_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="float64, which mps does not have"):
        audit.load_model(data / "toy-model", "mps")


@pytest.mark.parametrize("name", ["float64", "half", "", "int8", "Tensor"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="auto, float32, bfloat16, float16"):
        resolve_dtype(name, "cpu")


def test_scores_of_half_precision_are_those_of_float32_but_for_the_rounding_of_the_weights(
    small: audit.Model, half: audit.Model
) -> None:
    full, rounded = (audit.screen(model, CAPTIONS[:1], detectors=["profile"], resolution=16) for model in (small, half))
    for name in ("noise_response", "layer_bos"):
        assert rounded[name].type == pa.list_(pa.float64())
        np.testing.assert_allclose(_numbers(rounded, name), _numbers(full, name), atol=0.05)


def test_latents_stay_in_float32_between_steps(half: audit.Model) -> None:
    """A latent that had been stored in half precision would equal its own rounding."""
    table = audit.generate(half, CAPTIONS[:1], steps=2, output="latents")
    latents = torch.from_numpy(_numbers(table, "latents"))
    assert table["status"].to_pylist() == ["ok"]
    assert (latents != latents.to(half.dtype).float()).float().mean() > 0.9


def test_images_are_decoded_in_half_precision(half: audit.Model) -> None:
    table = audit.generate(half, CAPTIONS[:1], steps=1)
    assert table["status"].to_pylist() == ["ok"]
    assert table["image"][0].as_py().startswith(b"\x89PNG")


def test_a_pipeline_serves_in_half_precision(half: audit.Model) -> None:
    table = serve(half, CAPTIONS[:1], steps=1)
    assert table["image"].null_count == 0


def test_what_overflows_float16_is_an_error_that_names_the_remedy(data: Path) -> None:
    table = audit.screen(_loud(data, torch.float16), CAPTIONS[:1], detectors=["noise_magnitude"])
    (row,) = table.to_pylist()
    assert row["status"] == "error"
    assert row["noise_magnitude"] is None
    assert row["error"].startswith("not finite: output of the unet")
    assert "set engine.dtype to bfloat16 or float32" in row["error"]


def test_what_overflows_float16_fits_bfloat16(data: Path) -> None:
    table = audit.screen(_loud(data, torch.bfloat16), CAPTIONS[:1], detectors=["noise_magnitude"])
    assert table["status"].to_pylist() == ["ok"]


def test_a_calibration_holds_for_its_own_dtype_only(small: audit.Model, data: Path) -> None:
    call: dict[str, Any] = {"detectors": ["noise_magnitude"], "batch_size": 100, "resolution": 8}
    calibration = audit.calibrate(audit.screen(small, CAPTIONS, **call), "noise_magnitude")
    half = audit.load_model(data / "toy-model", dtype=torch.bfloat16)
    with pytest.raises(AuditError, match="dtype is 'bfloat16' in the table, 'float32' in the calibration"):
        calibration.score(audit.screen(half, ["a dog"], **call))


def _loud(data: Path, dtype: torch.dtype) -> audit.Model:
    """A model whose output is beyond the range of float16."""
    model = audit.load_model(data / "toy-model", dtype=dtype)
    model.unet.conv_out.weight.mul_(30_000)
    model.unet.conv_out.bias.add_(60_000)
    return model


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float64 if name != "latents" else np.float32)
