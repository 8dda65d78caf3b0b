"""A reference model: the features of both, and distances in what they differ in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import audit
from audit import schema
from audit.detectors import features
from audit.errors import AuditError
from tests.support.toy import MODEL

CAPTIONS = ["a dog", "the sea at night"]
CONTROL = [f"a {a} {b} {c}" for a in ("red", "old", "wet") for b in ("cat", "boat", "hat", "hill") for c in "abcdefgh"]

SMALL: dict[str, Any] = {"batch_size": 100, "resolution": 8}  # what is cheap with many captions


@pytest.fixture(scope="module")
def base(small: audit.Model) -> audit.Model:
    return small


@pytest.fixture(scope="module")
def tuned() -> audit.Model:
    """`base` after some training: other weights, and another hash."""
    model = audit.load_model(MODEL)
    generator = torch.Generator().manual_seed(0)
    for layer in model.layers:
        layer.to_k.weight += 0.3 * torch.randn(layer.to_k.weight.shape, generator=generator)
    return replace(model, weights_sha256=model.weights_sha256 | {"unet": "tuned"})


@pytest.fixture(scope="module")
def control(base: audit.Model, tuned: audit.Model) -> pa.Table:
    return audit.screen(tuned, CONTROL, **SMALL, detectors=["attention_profile"], reference=base)


def test_the_columns_of_both_stand_beside_each_other(base: audit.Model, tuned: audit.Model) -> None:
    detectors, own = ["attention_profile", "noise_magnitude"], ["layer_entropy", "layer_bos", "noise_magnitude"]
    table = audit.screen(tuned, CAPTIONS, detectors=detectors, reference=base)
    assert table.schema.equals(schema.scored([*own, *("reference_" + name for name in own)]))
    for model, prefix in ((tuned, ""), (base, "reference_")):
        alone = audit.screen(model, CAPTIONS, detectors=detectors)
        assert all(table[prefix + name].equals(alone[name]) for name in own)


def test_distances_are_measured_in_the_difference_of_the_features(control: pa.Table) -> None:
    calibration = audit.calibrate(control, "attention_profile")
    differences = []
    for prefix in ("", "reference_"):
        columns = {name: np.array(control[prefix + name].to_pylist()) for name in ("layer_entropy", "layer_bos")}
        differences.append(features("attention_profile", columns))
    [part] = calibration.parts
    assert np.median(differences[0] - differences[1], axis=0) == pytest.approx(part.distance.median, abs=0.3)
    assert part.distance.median != pytest.approx(np.median(differences[0], axis=0), abs=0.3)


def test_beside_itself_a_model_differs_nowhere_and_cannot_be_calibrated(base: audit.Model) -> None:
    control = audit.screen(base, CONTROL, **SMALL, detectors=["noise_magnitude"], reference=base)
    assert control["noise_magnitude"].equals(control["reference_noise_magnitude"])
    with pytest.raises(AuditError, match="noise_magnitude gives all .* control captions the same score"):
        audit.calibrate(control, "noise_magnitude")


def test_a_calibration_holds_for_one_reference_model(base: audit.Model, tuned: audit.Model, control: pa.Table) -> None:
    call: dict[str, Any] = SMALL | {"detectors": ["attention_profile"]}
    calibration = audit.calibrate(control, "attention_profile")
    with pytest.raises(AuditError, match="reference model's weights of"):
        calibration.score(audit.screen(tuned, CAPTIONS, **call))
    with pytest.raises(AuditError, match="reference model's weights of unet"):
        calibration.score(audit.screen(tuned, CAPTIONS, **call, reference=tuned))
    assert len(calibration.score(audit.screen(tuned, CAPTIONS, **call, reference=base))) == 2


def test_a_row_that_fails_in_the_reference_model_is_an_error_that_says_so(base: audit.Model) -> None:
    broken = audit.load_model(MODEL)
    broken.unet.conv_out.bias[0] = torch.nan
    row = audit.screen(base, ["a dog"], detectors=["noise_magnitude"], reference=broken).to_pylist()[0]
    assert row["status"] == "error"
    assert row["noise_magnitude"] is None
    assert row["reference_noise_magnitude"] is None
    assert row["error"] == "reference model: not finite: output of the unet, t = 981"


def test_a_reference_model_of_another_shape_is_refused(base: audit.Model) -> None:
    other = replace(base, latent_shape=(4, 8, 8))
    with pytest.raises(AuditError, match=r"latent shape is \[4, 8, 8\] in the reference model"):
        audit.screen(base, ["a dog"], detectors=["noise_magnitude"], reference=other)
