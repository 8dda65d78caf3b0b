"""Which floor an embedder has, and which control captions set the thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from audit import schema
from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from audit.embedding.floors import PUBLISHED, floors_of
from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.verdicts.confirm_error import setting_half
from pipelines.configuration.config import Config
from pipelines.demo.demo import bundle
from pipelines.steps import thresholds
from tests.support.toy import settings_of


def config_of(**sscd: Any) -> Config:
    return Config.model_validate(settings_of(confirm={"sscd": sscd}))


@pytest.fixture
def unmeasured(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(path)
    return str(path)


def test_sscd_has_the_published_floor_and_clip_has_none() -> None:
    for weights in ("sscd_disc_mixup", "sscd_disc_large", "elsewhere/sscd.torchvision.pt"):
        assert {kind: floor.value for kind, floor in floors_of(weights).items()} == {
            "verbatim": PUBLISHED,
            "region": PUBLISHED,
        }
    assert floors_of("ViT-B-32/laion2b_s34b_b79k") == floors_of("clip.pt", "ViT-B-32") == {}


def test_the_shipped_descriptor_carries_what_was_measured_for_it() -> None:
    floors = floors_of(bundle() / "embedders/sscd.safetensors")
    assert set(floors) == {"verbatim", "region"}
    assert all(0.5 < floor.value < 0.9 for floor in floors.values())
    thresholds.check(config_of(weights=str(bundle() / "embedders/sscd.safetensors")))


def test_an_embedder_without_a_floor_does_not_decide(unmeasured: str) -> None:
    with pytest.raises(
        AuditError,
        match=r"(?s)no confirm.sscd.min_similarity_verbatim and confirm.sscd.min_similarity_region.*Set confirm.sscd",
    ):
        thresholds.check(config_of(weights=unmeasured))
    with pytest.raises(AuditError, match=r"no confirm.sscd.min_similarity_region\n"):
        thresholds.check(config_of(weights=unmeasured, min_similarity_verbatim=0.8))
    config = config_of(weights=unmeasured, min_similarity_verbatim=0.8, min_similarity_region=0.7)
    thresholds.check(config)
    assert {floor.source for floor in thresholds.floors(config, "sscd").values()} == {"configured"}
    thresholds.check(Config.model_validate(settings_of(images=None, confirm={"sscd": {"weights": unmeasured}})))


@pytest.fixture
def controls(tmp_path: Path) -> Ledger:
    """The tables of a run with 400 control captions in pairs of near-identical ones, and nothing else."""
    ledger = Ledger(str(tmp_path / "run"))
    rows = [{"caption_id": f"{n:03d}", "caption": f"text {n}", "caption_group": f"{n // 2:03d}"} for n in range(400)]
    ledger.write("control_screen", "00000", pa.Table.from_pylist(rows, schema.control_screen(())))
    ledger.write("rows", "00000", schema.ROWS.empty_table())
    ledger.write("captions", "00000", schema.CAPTIONS.empty_table())
    return ledger


def matched(similarity_of: dict[str, float]) -> pa.Table:
    rows = [
        {
            "caption_id": id_,
            "purpose": "control",
            "seed": 1,
            "embedder": "sscd",
            "image_id": "i",
            "similarity": similarity,
            "region_similarity": similarity,
            "region_agreement": 1.0,
        }
        for id_, similarity in similarity_of.items()
    ]
    return pa.Table.from_pylist(rows, schema.MATCHES)


def test_the_measuring_half_sets_no_threshold_and_the_other_half_measures_nothing(controls: Ledger) -> None:
    config = config_of(weights="sscd_disc_mixup")
    config = config.model_copy(update={"generate": config.generate.model_copy(update={"seeds": [1]})})
    setting = setting_half(controls.read("control_screen"), seed=5)
    usual = {f"{n:03d}": float(value) for n, value in enumerate(np.linspace(0.1, 0.6, 400))}
    found = thresholds.chosen(controls, config, matched(usual), 5)
    limits = found.thresholds["sscd"]
    assert {kind: limit.used for kind, limit in limits.items()} == {"verbatim": 200, "region": 200}
    assert found.error.controls == 200
    raised = {id_: value if id_ in setting else 0.99 for id_, value in usual.items()}
    high = thresholds.chosen(controls, config, matched(raised), 5)
    assert high.thresholds == found.thresholds
    assert high.error.confirmed == 200
    raised = {id_: 0.8 if id_ in setting else value for id_, value in usual.items()}
    low = thresholds.chosen(controls, config, matched(raised), 5)
    assert low.thresholds["sscd"]["verbatim"].value == 0.8
    assert low.error.confirmed == 0
